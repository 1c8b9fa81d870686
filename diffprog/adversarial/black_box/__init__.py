"""Black-box attacks, which query only the logits or the predicted class of a model."""

from diffprog.adversarial.black_box._hop_skip_jump import hop_skip_jump
from diffprog.adversarial.black_box._square import square

__all__ = ["hop_skip_jump", "square"]
