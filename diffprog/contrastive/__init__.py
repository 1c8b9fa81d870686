"""Text and images in one space: towers trained to agree on pairs, and images made by ascent on their similarity to a sentence."""

from diffprog.contrastive._agreement import Classified, Retrieval, retrieval, zero_shot
from diffprog.contrastive._byte_pairs import BytePairs, byte_pairs
from diffprog.contrastive._captions import NAMES, ORDERS, Measures, calculations, caption, captions, looks, measures
from diffprog.contrastive._clip import load_clip
from diffprog.contrastive._generate import Generated, generate, similar_to
from diffprog.contrastive._loss import info_nce, sigmoid_loss
from diffprog.contrastive._pretrained import Pretrained
from diffprog.contrastive._pretraining import pretrain
from diffprog.contrastive._resnet import load_resnet
from diffprog.contrastive._tokens import Pieces, Tokenizer, characters, words
from diffprog.contrastive._towers import Towers, similarity, text_tower, towers
from diffprog.contrastive._vit import load_vit

__all__ = [
    "NAMES",
    "ORDERS",
    "BytePairs",
    "Classified",
    "Generated",
    "Measures",
    "Pieces",
    "Pretrained",
    "Retrieval",
    "Tokenizer",
    "Towers",
    "byte_pairs",
    "calculations",
    "caption",
    "captions",
    "characters",
    "generate",
    "info_nce",
    "load_clip",
    "load_resnet",
    "load_vit",
    "looks",
    "measures",
    "pretrain",
    "retrieval",
    "sigmoid_loss",
    "similar_to",
    "similarity",
    "text_tower",
    "towers",
    "words",
    "zero_shot",
]
