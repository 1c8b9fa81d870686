"""Generate images of digits from sentences, by ascent on their similarity to the sentence.

    python -m experiments.text_to_image [--fast]

A convolutional network and a transformer are trained on half of scikit-learn's handwritten digits
and on captions that are true of them, so that an image and its captions get similar features. On
the other half they classify digits by name, also in sentences of templates without training
captions, and retrieve captions for images and images for captions. Gradient ascent on the
similarity then generates images of sentences.

High similarity does not show that an image fits its sentence: every network is fooled by images
that were optimized for it. So the images are classified by k nearest neighbours and a support
vector machine that were fitted to the other half of the digits, and words such as "bold" are
compared with measurements. One sentence always gives about the same image; therefore each digit is
generated in 27 styles, and the spread of its images is reported. Writes results/text_to_image/:
figures, numbers.json and index.html.

To generate images of your own sentences, change `SENTENCES`; for your own images, `split_digits`
and the captions of `Half`.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

import diffprog as dp
from diffprog.plotting import Section, Table
from experiments.digit_captions import (
    NAMES,
    TEMPLATES,
    Style,
    calculations,
    classify_style,
    measure_style,
    true_captions,
    write_caption,
)

con, vis = dp.contrastive, dp.visualization

EPOCHS, STEPS, FEATURES, MAX_WORDS = 60, 150, 64, 12
NUMERALS = tuple(str(digit) for digit in range(10))
STYLES = list(itertools.product((-1, 0, 1), repeat=3))
UNSEEN_TEMPLATES = (
    "{name} {slant} {boldness} {size}",
    "{size} {slant} {name} {boldness}",
    "{boldness} the {name} {slant} {size}",
    "{slant} a picture of {size} {name} a {boldness}",
    "{name} {boldness} of a {slant} {size} picture",
)
SENTENCES = (
    *(write_caption("a {name}", name) for name in NAMES),
    "a bold zero",
    "a thin zero",
    "a seven leaning left",
    "a seven leaning right",
    "two times four",
    "small two bold",
    "a seven:1 | a one:-0.5",
    "a one:1 | a seven:-0.5",
    "a nine:1 | a seven:-0.5",
    "a three:1 | an eight:1",
)
TRAINING_TRANSFORMS = (*vis.default_transforms(), vis.noise(0.1))
# More noise than in training, so that fine patterns do not raise the similarity.
GENERATION_TRANSFORMS = (*vis.default_transforms(), vis.noise(0.3))
# The covariance of real digits implies sparse, smooth ink; pixels and frequencies need penalties.
COVARIANCE_PENALTIES: dict[Any, float] = {vis.of_variable(vis.l2): 0.01}
PIXEL_PENALTIES: dict[Any, float] = {vis.l2: 0.01, vis.blur: 0.05}


class Half(NamedTuple):
    """Half of the digits: images, labels and style levels."""

    images: jax.Array
    labels: np.ndarray
    styles: np.ndarray

    def captions(self, templates: Sequence[str] = TEMPLATES) -> list[tuple[str, ...]]:
        """List the true captions of each image."""
        return [
            true_captions(int(digit), style, templates=templates)
            for digit, style in zip(self.labels, self.styles.tolist(), strict=True)
        ]


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, classify, retrieve, generate, write to `folder`, and return the numbers."""
    epochs, steps = (2, 5) if fast else (EPOCHS, STEPS)
    train_key, image_key, test_key = jax.random.split(jax.random.key(seed), 3)
    first, second = split_digits()
    towers = train(first, epochs, train_key)
    covariance = vis.covariance(first.images)
    generated = generate(towers, SENTENCES, covariance, steps, image_key)
    by_parametrization, examples = classify_generated(towers, first, second, steps, test_key)
    numbers = {
        "zero-shot": classify_by_name(towers, second),
        "captions": {
            "training templates": classify_by_caption(towers, second, TEMPLATES),
            "unseen templates": classify_by_caption(towers, second, UNSEEN_TEMPLATES),
        },
        "recall": {
            "training template": recall(towers, second, TEMPLATES[0]),
            "unseen template": recall(towers, second, UNSEEN_TEMPLATES[0]),
        },
        "generated": by_parametrization,
        "spread of real digits": spread(second.images, second.labels),
        "styles": compare_styles(towers, covariance, steps, test_key),
    }
    write(folder, numbers, generated, examples)
    return numbers


def split_digits() -> tuple[Half, Half]:
    """Split scikit-learn's digits into two halves that share no image."""
    digits = dp.data.digits()
    images = jnp.concatenate([digits.x_train, digits.x_test])
    labels = np.concatenate([digits.y_train, digits.y_test])
    middle = len(labels) // 2
    first, second = (
        Half(images[part], labels[part], classify_style(images[part], labels[part]))
        for part in (slice(middle), slice(middle, None))
    )
    return first, second


def train(half: Half, epochs: int, key: jax.Array) -> con.Towers:
    """Train a convolutional image encoder and a transformer of words on pairs."""
    init_key, pairs_key = jax.random.split(key)
    captions = half.captions()
    words = con.words([text for texts in captions for text in texts], length=MAX_WORDS)
    image = dp.models.cnn((8, 8, 1), classes=FEATURES)
    text = con.text_tower(words.count, MAX_WORDS, outputs=FEATURES)
    return con.pretrain(
        con.towers(image, text, words, key=init_key),
        half.images,
        captions,
        epochs=epochs,
        transforms=TRAINING_TRANSFORMS,
        key=pairs_key,
    ).params


def classify_by_name(towers: con.Towers, half: Half) -> dict[str, float]:
    """Compute the zero-shot accuracy for each kind of class name."""
    kinds: dict[str, Any] = {
        "a word": NAMES,
        "a numeral": NUMERALS,
        "sums and products": {name: calculations(digit) for digit, name in enumerate(NAMES)},
    }

    def accuracy(classes: Any) -> float:
        predicted = np.asarray(con.zero_shot(towers, half.images, classes).labels)
        return float((predicted == half.labels).mean())

    return {kind: accuracy(classes) for kind, classes in kinds.items()}


def classify_by_caption(
    towers: con.Towers, half: Half, templates: Sequence[str]
) -> dict[str, float]:
    """Compute the accuracy for every set of ten captions that differ in the digit alone."""
    sets = {
        tuple(write_caption(template, name, style) for name in names)
        for template in templates
        for style in STYLES
        for names in (NAMES, NUMERALS)
    }
    known = set() if templates == TEMPLATES else set(all_captions(TEMPLATES))
    new_sets = sorted(texts for texts in sets if not known.intersection(texts))
    texts = list(itertools.chain(*new_sets))
    cosines = con.similarity(towers, half.images, texts).reshape(len(half.images), -1, 10)
    accuracies = (np.asarray(cosines.argmax(-1)) == half.labels[:, None]).mean(0)
    return {
        "captions per digit": len(new_sets),
        "mean": float(accuracies.mean()),
        "worst": float(accuracies.min()),
    }


def all_captions(templates: Sequence[str]) -> list[str]:
    """List the captions of all digits in all styles."""
    lists = [
        true_captions(digit, style, templates=templates) for digit in range(10) for style in STYLES
    ]
    return sorted(set(itertools.chain(*lists)))


def recall(towers: con.Towers, half: Half, template: str) -> dict[str, Any]:
    """Compute the recall among the first 1, 5 and 10 captions of images and images of captions."""
    texts = all_captions([template])
    true = np.array([np.isin(texts, own) for own in half.captions([template])])
    result = con.retrieval(towers, half.images, texts, true)
    return {
        "captions": len(texts),
        "image to text": {str(k): share for k, share in result.texts.items()},
        "text to image": {str(k): share for k, share in result.images.items()},
    }


def generate(
    towers: con.Towers,
    sentences: Sequence[str],
    image: vis.Image,
    steps: int,
    key: jax.Array,
    *,
    penalties: dict[Any, float] | None = COVARIANCE_PENALTIES,
) -> con.Generated:
    """Generate an image of each sentence."""
    return con.generate(
        towers,
        sentences,
        image,
        key=key,
        steps=steps,
        transforms=GENERATION_TRANSFORMS,
        penalties=penalties,
    )


def classify_generated(
    towers: con.Towers, first: Half, second: Half, steps: int, key: jax.Array
) -> tuple[dict[str, Any], jax.Array]:
    """Classify generated images by models of other kinds, fitted to the other half.

    Returns:
        Similarity, accuracies and spread for each image parametrization, and one image without
        style words for each parametrization and digit.
    """
    classifiers = {"k-NN": KNeighborsClassifier(5), "SVC": SVC()}
    for classifier in classifiers.values():
        classifier.fit(flatten(second.images), second.labels)
    parametrizations = {
        "covariance": (vis.covariance(first.images), COVARIANCE_PENALTIES),
        "Fourier": (vis.fourier((8, 8, 1)), PIXEL_PENALTIES),
        "pixels": (vis.pixels((8, 8, 1)), PIXEL_PENALTIES),
        "bare pixels": (vis.pixels((8, 8, 1)), None),
    }
    sentences = [write_caption(TEMPLATES[0], name, style) for name in NAMES for style in STYLES]
    digits = np.repeat(np.arange(10), len(STYLES))
    results: dict[str, Any] = {}
    examples = []
    for name, (image, penalties) in parametrizations.items():
        generated = generate(towers, sentences, image, steps, key, penalties=penalties)
        results[name] = {"similarity": float(generated.seen.scores.mean())}
        for kind, classifier in classifiers.items():
            predicted = classifier.predict(flatten(generated.images))
            results[name][kind] = float((predicted == digits).mean())
        results[name]["spread"] = spread(generated.images, digits)
        examples.append(generated.images[STYLES.index((0, 0, 0)) :: len(STYLES)])
    return results, jnp.concatenate(examples)


def flatten(images: jax.Array) -> np.ndarray:
    return np.asarray(images).reshape(len(images), -1)


def spread(images: jax.Array, digits: np.ndarray) -> float:
    """Compute the standard deviation of pixels among images of a digit, averaged over digits.

    Variances are averaged over pixels before the root is taken.
    """
    pixels = flatten(images)
    return float(np.mean([np.sqrt(pixels[digits == j].var(0).mean()) for j in range(10)]))


def compare_styles(
    towers: con.Towers, image: vis.Image, steps: int, key: jax.Array
) -> dict[str, float]:
    """Compute the share of digits whose images for opposite words differ as the words say."""
    shares = {}
    for k, quantity in enumerate(Style._fields):
        sentences = [
            write_caption(TEMPLATES[0], name, [level * (k == i) for i in range(3)])
            for level in (-1, 1)
            for name in NAMES
        ]
        images = generate(towers, sentences, image, steps, key).images
        low, high = np.split(measure_style(images)[k], 2)
        shares[quantity] = float((low < high).mean())
    return shares


def write(
    folder: Path, numbers: dict[str, Any], generated: con.Generated, examples: jax.Array
) -> None:
    """Write the figures, the numbers and the page, and print the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    titles = [name if digit == 0 else "" for name in numbers["generated"] for digit in range(10)]
    figures = {
        "sentences": dp.plotting.draw_images(generated.images, generated.names, columns=5),
        "parametrizations": dp.plotting.draw_images(examples, titles, columns=10),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    tables = {
        "parametrizations": Table(
            ["parametrization", "similarity", "k-NN", "SVC", "spread"],
            [[name, *row.values()] for name, row in numbers["generated"].items()],
        ),
        "styles": Table(["quantity", "share"], list(numbers["styles"].items())),
        "names": Table(
            ["classified by", "accuracy"],
            [
                *numbers["zero-shot"].items(),
                *(
                    (f"captions of {kind}, {which}", accuracies[which])
                    for kind, accuracies in numbers["captions"].items()
                    for which in ("mean", "worst")
                ),
            ],
        ),
        "recall": Table(
            ["retrieval", "first", "first 5", "first 10"],
            [
                [f"{direction}, {template}", *shares[direction].values()]
                for template, shares in numbers["recall"].items()
                for direction in ("image to text", "text to image")
            ],
        ),
    }
    sections = [
        Section(
            "Images of sentences",
            "Gradient ascent on the similarity to the sentence above each image; a negative weight "
            "lowers the similarity to a sentence.",
            figures["sentences"],
        ),
        Section(
            "Accuracy of other classifiers on the images",
            f"{len(STYLES)} images of each digit, one per style, classified by models of other "
            "kinds that were fitted to the half of the digits not used to train the encoders. The "
            "figure has a row for each image parametrization, without style words; bare pixels "
            "have no penalties. Spread is the standard deviation of pixels among the images of a "
            f"digit; that of real digits is {numbers['spread of real digits']:.2f}.",
            figures["parametrizations"],
            tables["parametrizations"],
        ),
        Section(
            "Style words",
            "Images for opposite words, such as thin and bold, are compared with the moments of "
            "their ink: the share of digits that differ as the words say.",
            table=tables["styles"],
        ),
        Section(
            "Classification by names and captions",
            "Accuracy on the half not used for training. The worst caption varies with the seed.",
            table=tables["names"],
        ),
        Section(
            "Retrieval",
            "Share of images with a true caption among the first k, and of captions with a "
            "matching image among the first k, on the same half.",
            table=tables["recall"],
        ),
    ]
    page = dp.plotting.write_page(
        folder / "index.html",
        "Text to image",
        sections,
        summary="Images optimized to be similar to a sentence, and tests of what they show.",
    )
    print(generated)
    for table in tables.values():
        print(f"\n{table.columns[0]:40}", *(f"{column:>10}" for column in table.columns[1:]))
        for label, *cells in table.rows:
            print(f"{label!s:40}", *(f"{cell:10.3f}" for cell in cells))
    print(page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="a few steps of everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/text_to_image"))
    main(**vars(parser.parse_args()))
