"""Images from sentences, and sentences for images.

    python -m experiments.text_to_image [--fast]

trains a convolutional network and a transformer, on half of scikit-learn's handwritten digits and on captions that are true of them, until
image and caption point the same way. Then tells the digits of the other half apart by their names alone, also in sentences of an order that
no caption had; finds the images that a sentence describes and the sentences that describe an image; and makes images of sentences, by
ascent on their similarity.

Similarity is no evidence that an image shows what was asked for: any network is fooled by what was made with it. So two others read the
images, a nearest-neighbour vote and a support vector machine, which have seen the other half of the digits and no gradient; and words such
as "bold" are held against what is measured. Images of one sentence come out nearly alike, so the readers are given one image for each of
the 27 looks that can be asked for, and the spread of the images of a digit stands beside what they read. Writes results/text_to_image/:
figures, numbers.json and index.html.

To make images of your own sentences, change `SENTENCES`; of your own images, `training_captions`.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import diffprog as dp
from diffprog.plotting import Section, Table
from experiments import digit_captions

con, vis = dp.contrastive, dp.visualization

EPOCHS, STEPS, WIDTH, LENGTH = 60, 150, 64, 12
NUMERALS = tuple(str(digit) for digit in range(10))
# Ink is sparse and pens are blunt: pixels and frequencies have to be told, the covariance of real digits knows.
LIKELY: dict[Any, float] = {vis.of_variable(vis.l2): 0.01}
SPARSE_AND_BLUNT: dict[Any, float] = {vis.l2: 0.01, vis.blur: 0.05}
TRANSFORMS = (*vis.default_transforms(), vis.noise(0.1))
# Stronger noise than the towers have learned to overlook: what they still see through it is no fine pattern.
SEEN_THROUGH = (*vis.default_transforms(), vis.noise(0.3))
UNSEEN_ORDERS = (
    "{name} {slant} {boldness} {size}",
    "{size} {slant} {name} {boldness}",
    "{boldness} the {name} {slant} {size}",
    "{slant} a picture of {size} {name} a {boldness}",
    "{name} {boldness} of a {slant} {size} picture",
)
SENTENCES = (
    *(digit_captions.caption("a {name}", name) for name in digit_captions.NAMES),
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


class Half(NamedTuple):
    """Half of the digits: images, what they show, and how it is written."""

    images: jax.Array
    labels: np.ndarray
    looks: np.ndarray

    def captions(self, orders: Sequence[str] = digit_captions.ORDERS) -> list[tuple[str, ...]]:
        """All that is true of each image, in sentences of these orders."""
        return [
            digit_captions.captions(int(digit), look, orders=orders)
            for digit, look in zip(self.labels, self.looks.tolist(), strict=True)
        ]


def main(folder: Path, *, fast: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train, tell apart, find, make, judge, and write it all to `folder`; returns the numbers."""
    epochs, steps = (2, 5) if fast else (EPOCHS, STEPS)
    first, second = halves()
    train_key, sheet_key, judge_key = jax.random.split(jax.random.key(seed), 3)
    began = time.perf_counter()
    towers = train(first, epochs, train_key)
    trained = time.perf_counter()
    told = {
        "trained orders": told_apart(towers, second, digit_captions.ORDERS),
        "unseen orders": told_apart(towers, second, UNSEEN_ORDERS),
    }
    found = {
        "a trained order": recalls(towers, second, digit_captions.ORDERS[:1]),
        "an unseen order": recalls(towers, second, UNSEEN_ORDERS[:1]),
    }
    tested = time.perf_counter()
    sheet = make(towers, SENTENCES, vis.covariance(first.images), steps, sheet_key)
    made = time.perf_counter()
    judged, examples = judge(towers, first, second, steps, judge_key)
    flat = np.asarray(second.images).reshape(len(second.labels), -1)
    numbers = {
        "seconds": {
            "training": trained - began,
            "zero-shot and retrieval": tested - trained,
            "sheet": made - tested,
        },
        "zero-shot": named(towers, second) | told,
        "recall": found,
        "judges": judged,
        "spread of real digits": spread(flat, second.labels),
        "looks": looked(towers, first, steps, judge_key),
    }
    write(folder, numbers, sheet, examples)
    return numbers


def halves() -> tuple[Half, Half]:
    """Scikit-learn's digits in two halves that share no image."""
    digits = dp.data.digits()
    images, labels = (
        jnp.concatenate([digits.x_train, digits.x_test]),
        np.concatenate([digits.y_train, digits.y_test]),
    )
    parts = [
        (images[some], labels[some])
        for some in (slice(len(labels) // 2), slice(len(labels) // 2, None))
    ]
    first, second = (Half(x, y, digit_captions.looks(x, y)) for x, y in parts)
    return first, second


def train(half: Half, epochs: int, key: jax.Array) -> con.Towers:
    """A convolutional image tower and a transformer of words, trained on pairs."""
    weights_key, pairs_key = jax.random.split(key)
    captions = half.captions()
    words = con.words([text for texts in captions for text in texts], length=LENGTH)
    image, text = (
        dp.models.cnn((8, 8, 1), classes=WIDTH),
        con.text_tower(words.count, LENGTH, outputs=WIDTH),
    )
    towers = con.towers(image, text, words, key=weights_key)
    return con.pretrain(
        towers, half.images, captions, epochs=epochs, transforms=TRANSFORMS, key=pairs_key
    ).params


def named(towers: con.Towers, half: Half) -> dict[str, float]:
    """The share of digits told apart by one name each, and by all calculations that come to them."""
    names: dict[str, Any] = {
        "a word": digit_captions.NAMES,
        "a numeral": NUMERALS,
        "sums and products": {
            name: digit_captions.calculations(digit)
            for digit, name in enumerate(digit_captions.NAMES)
        },
    }
    return {
        kind: float(
            (np.asarray(con.zero_shot(towers, half.images, of).labels) == half.labels).mean()
        )
        for kind, of in names.items()
    }


def told_apart(towers: con.Towers, half: Half, orders: Sequence[str]) -> dict[str, float]:
    """The share of digits told apart by ten captions that differ in the digit alone, for each order, look, and kind of name."""
    ways = itertools.product(orders, every_look(), (digit_captions.NAMES, NUMERALS))
    sets = {
        tuple(digit_captions.caption(order, name, look) for name in names)
        for order, look, names in ways
    }
    trained = (
        set() if orders == digit_captions.ORDERS else set(every_caption(digit_captions.ORDERS))
    )
    asked = sorted(texts for texts in sets if not trained.intersection(texts))
    cosines = con.similarity(
        towers, half.images, [text for texts in asked for text in texts]
    ).reshape(len(half.images), -1, 10)
    shares = (np.asarray(cosines.argmax(-1)) == half.labels[:, None]).mean(0)
    return {
        "captions for each digit": len(asked),
        "mean": float(shares.mean()),
        "worst": float(shares.min()),
    }


def every_look() -> list[tuple[int, ...]]:
    return list(itertools.product((-1, 0, 1), repeat=3))


def every_caption(orders: Sequence[str]) -> list[str]:
    return sorted(
        {
            text
            for digit in range(10)
            for look in every_look()
            for text in digit_captions.captions(digit, look, orders=orders)
        }
    )


def recalls(towers: con.Towers, half: Half, orders: Sequence[str]) -> dict[str, Any]:
    """Recall among the first 1, 5 and 10: of all captions in an order for each image, and of all images for each caption."""
    texts = every_caption(orders)
    true = np.array([np.isin(texts, own) for own in half.captions(orders)])
    found = con.retrieval(towers, half.images, texts, true)
    best = {
        name: {str(k): share for k, share in shares.items()}
        for name, shares in found._asdict().items()
    }
    return {"captions": len(texts), "image to text": best["texts"], "text to image": best["images"]}


def make(
    towers: con.Towers,
    sentences: Sequence[str],
    image: vis.Image,
    steps: int,
    key: jax.Array,
    *,
    penalties: Any = LIKELY,
) -> con.Generated:
    """Images of sentences."""
    return con.generate(
        towers, sentences, image, key=key, steps=steps, transforms=SEEN_THROUGH, penalties=penalties
    )


def judge(
    towers: con.Towers, first: Half, second: Half, steps: int, key: jax.Array
) -> tuple[dict[str, Any], jax.Array]:
    """How two readers that know the other half alone read an image of each digit in each look; and the plain ones of each kind."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    flat = lambda images: np.asarray(images).reshape(len(images), -1)
    readers = {"k-NN": KNeighborsClassifier(5), "SVC": SVC()}
    for reader in readers.values():
        reader.fit(flat(second.images), second.labels)
    asked, looks = np.repeat(np.arange(10), len(every_look())), every_look() * 10
    sentences = [
        digit_captions.caption(digit_captions.ORDERS[0], digit_captions.NAMES[digit], look)
        for digit, look in zip(asked, looks, strict=True)
    ]
    ways = {
        "covariance": (vis.covariance(first.images), LIKELY),
        "Fourier": (vis.fourier((8, 8, 1)), SPARSE_AND_BLUNT),
        "pixels": (vis.pixels((8, 8, 1)), SPARSE_AND_BLUNT),
        "bare pixels": (vis.pixels((8, 8, 1)), None),
    }
    judged, examples = {}, []
    for name, (image, penalties) in ways.items():
        made = make(towers, sentences, image, steps, key, penalties=penalties)
        right = {
            reader: float((readers[reader].predict(flat(made.images)) == asked).mean())
            for reader in readers
        }
        judged[name] = (
            {"similarity": float(made.seen.scores.mean())}
            | right
            | {"spread": spread(flat(made.images), asked)}
        )
        examples.append(made.images[np.array([not any(look) for look in looks])])
    return judged, jnp.concatenate(examples)


def spread(rows: np.ndarray, digits: np.ndarray) -> float:
    """How much images of one digit differ: the root mean square distance of a pixel from its mean over the digit, meant over digits."""
    return float(np.mean([np.sqrt(rows[digits == digit].var(0).mean()) for digit in range(10)]))


def looked(towers: con.Towers, half: Half, steps: int, key: jax.Array) -> dict[str, float]:
    """For each word and its opposite, the share of digits of which the images differ, as measured, in the way that was asked for."""
    orders = ("a {boldness} {size} {name} {slant}",)
    shares = {}
    for k, part in enumerate(digit_captions.Measures._fields):
        sentences = [
            digit_captions.caption(*orders, name, np.eye(3, dtype=int)[k] * way)
            for way in (-1, 1)
            for name in digit_captions.NAMES
        ]
        images = make(towers, sentences, vis.covariance(half.images), steps, key).images
        low, high = np.split(digit_captions.measures(images)[k], 2)
        shares[part] = float((low < high).mean())
    return shares


def write(folder: Path, numbers: dict[str, Any], sheet: con.Generated, examples: jax.Array) -> None:
    """The sheet, the judged images, the numbers and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "sheet": dp.plotting.draw_images(sheet.images, sheet.names, columns=5),
        "judged": dp.plotting.draw_images(
            examples,
            [
                f"{digit}, {name}" if digit == 0 else str(digit)
                for name in numbers["judges"]
                for digit in range(10)
            ],
            10,
        ),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    (folder / "numbers.json").write_text(json.dumps(numbers, indent=2))
    judged = Table(
        ["painted from", "similarity", "k-NN", "SVC", "spread"],
        [[name, *row.values()] for name, row in numbers["judges"].items()],
    )
    told = Table(
        ["digits told apart by", "share"],
        [[name, share] for name, share in shares(numbers["zero-shot"])],
    )
    found = Table(["recall", "first", "first 5", "first 10"], list(recall_rows(numbers["recall"])))
    looked = Table(
        ["digits that differ as asked in", "share"],
        [[part, share] for part, share in numbers["looks"].items()],
    )
    sections = [
        Section(
            "Images of sentences",
            "Ascent on similarity; a weight below zero says what an image shall not be like.",
            figures["sheet"],
        ),
        Section(
            "What others read in them",
            f"{len(every_look())} images of each digit, one for each look that can be asked for, read by models of other kinds that know "
            "only the half of the digits on which the towers were not trained. The plain one of each digit is drawn: a row for each line "
            "of the table. Spread is the root mean square by which pixels differ among the images of a digit; among real ones it is "
            f"{numbers['spread of real digits']:.2f}. Images of one and the same sentence are "
            "near-copies, and would count for one. Nothing is subtracted from the similarity of bare pixels.",
            figures["judged"],
            judged,
        ),
        Section(
            "Are bold ones bold",
            "Each word and its opposite, ten digits each; held against moments of the ink.",
            table=looked,
        ),
        Section(
            "Digits by their names",
            "The half on which the towers were not trained. How the worst caption does changes from seed to seed.",
            table=told,
        ),
        Section(
            "Images for sentences and sentences for images",
            "Of the same half, in an order of words.",
            table=found,
        ),
    ]
    page = dp.plotting.write_page(
        folder / "index.html", "Text to image", sections, summary="The image is the free variable."
    )
    print(sheet)
    for table in (told, found, judged, looked):
        print(
            *(
                "  ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
                for row in table.rows
            ),
            sep="\n",
        )
    print(page)


def shares(zero_shot: dict[str, Any]) -> list[tuple[str, float]]:
    """A row for each name, and two for each set of orders."""
    plain = [(name, share) for name, share in zero_shot.items() if not isinstance(share, dict)]
    sets = [(name, row) for name, row in zero_shot.items() if isinstance(row, dict)]
    return plain + [
        (f"captions in {name}, {which}", row[which])
        for name, row in sets
        for which in ("mean", "worst")
    ]


def recall_rows(recall: dict[str, Any]) -> list[list[Any]]:
    return [
        [f"{way}, {order}", *of[way].values()]
        for order, of in recall.items()
        for way in ("image to text", "text to image")
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a few steps of everything, to see that it runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("results/text_to_image"))
    options = parser.parse_args()
    main(options.folder, fast=options.fast, seed=options.seed)
