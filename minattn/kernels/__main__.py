"""Compile the attention kernels ahead of their first use, and say how long it took: python -m minattn.kernels

Compiled code is kept on disk, so a second run takes a moment.
"""

from __future__ import annotations

import time

import numpy as np

from minattn.autograd import Tensor

from . import flash_attention
from .dispatch import have_blas, have_numba
from .lean import lean_attention_decode


def main() -> None:
    """Compile forward and backward in both precisions."""
    if not (have_numba() and have_blas()):
        print("[kernels] nothing to compile: Numba or SciPy is missing, or Numba's compiler is switched off")
        return
    start = time.perf_counter()
    for dtype in (np.float32, np.float64):
        x = np.ones((1, 1, 2, 2), dtype)
        lean_attention_decode(x[:, :, :1], x, x)
        leaves = [Tensor(x, requires_grad=True) for _ in range(3)]
        flash_attention(*leaves).backward(x)
    took = time.perf_counter() - start
    print(f"[kernels] attention, forward and backward: compiled or found in {took:.1f} s")


if __name__ == "__main__":
    main()
