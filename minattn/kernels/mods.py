"""What a score function is written with, so that it runs on arrays, on Tensors and inside compiled tiles.

``score_mod(score, b, h, i, j)`` gets all scores of a call and index arrays that broadcast against them in the
reference, and five numbers in the kernel. Arithmetic, comparisons and `abs` work on both, and so do `exp`,
`tanh`, `sigmoid`, `relu` and `where` of minattn, and `like` below. Powers of the score are best written as
products: with ``**``, `abs` or a comparison of it, gradients are computed from all scores at once.
"""

from __future__ import annotations

from typing import Any

from minattn.autograd import namespace

__all__ = ["like"]


def like(x: Any, score: Any) -> Any:
    """The constant x in the precision of `score`, so that a score function works in any; numbers stay."""
    return namespace(score).asarray(x, dtype=score.dtype) if hasattr(score, "dtype") else x
