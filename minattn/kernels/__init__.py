"""Hot loops: one file an operation, its reference in NumPy, and faster forms chosen by the kind of array."""

from .blocks import BlockMask
from .conv import avg_pool2d, conv1d, conv2d, max_pool2d, unfold
from .cross_entropy import cross_entropy
from .dropout import dropout
from .embedding import embedding
from .flash import flash_attention
from .gated_linear_attention import gated_linear_attention
from .gelu import gelu
from .linear_attention import delta_rule, linear_attention
from .long_conv import long_conv, short_conv
from .norms import layer_norm, rms_norm
from .packed import Packed, pack, packed_linear
from .scan import linear_scan, selective_scan
from .silu import silu
from .swiglu import swiglu
from .topk import topk

__all__ = ["BlockMask", "Packed", "avg_pool2d", "conv1d", "conv2d", "cross_entropy", "delta_rule",
           "dropout", "embedding", "flash_attention", "gated_linear_attention", "gelu", "layer_norm",
           "linear_attention", "linear_scan", "long_conv", "max_pool2d", "pack", "packed_linear", "rms_norm",
           "selective_scan", "short_conv", "silu", "swiglu", "topk", "unfold"]
