"""Contrastive language-image models: train them, classify zero-shot, generate images from text."""

from diffprog.contrastive._bpe import BytePairs, byte_pairs
from diffprog.contrastive._clip import load_clip
from diffprog.contrastive._dual_encoder import Towers, similarity, text_tower, towers
from diffprog.contrastive._info_nce import info_nce, sigmoid_loss
from diffprog.contrastive._text_to_image import Generated, generate, similar_to
from diffprog.contrastive._tokenizers import Pieces, Tokenizer, characters, words
from diffprog.contrastive._train import pretrain
from diffprog.contrastive._zero_shot import Classified, Retrieval, retrieval, zero_shot

__all__ = [
    "BytePairs",
    "Classified",
    "Generated",
    "Pieces",
    "Retrieval",
    "Tokenizer",
    "Towers",
    "byte_pairs",
    "characters",
    "generate",
    "info_nce",
    "load_clip",
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
