"""Hot loops: one file an operation, its reference in NumPy, and faster forms chosen by the kind of array."""

from .conv import avg_pool2d, conv1d, conv2d, max_pool2d, unfold
from .cross_entropy import cross_entropy
from .dropout import dropout
from .gelu import gelu
from .norms import layer_norm, rms_norm
from .silu import silu

__all__ = ["avg_pool2d", "conv1d", "conv2d", "cross_entropy", "dropout", "gelu", "layer_norm", "max_pool2d",
           "rms_norm", "silu", "unfold"]
