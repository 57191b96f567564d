"""minattn: attention from scratch, each mechanism slow to read and fast to use, proved equal.

``import minattn as mn`` gives the names of `minattn.autograd` and `minattn.kernels`; the packages `nn`,
`attention`, `transformer` and the chapters load when they are first named.
"""

import importlib
import os
import sys
from typing import Any

if "numpy" not in sys.modules:  # idle threads of BLAS spin for 2^26 cycles, beside our kernels; 2^16 do
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")

import numpy as np

from .autograd import *  # noqa: F403
from .autograd import __all__ as _autograd_names
from .kernels import *  # noqa: F403
from .kernels import __all__ as _kernel_names

# glibc learns from what is freed: it now keeps 64 MB at hand, and a training step need not fetch its memory
# from the system, page by page, again and again.
np.empty(2**25 - 2**16, np.uint8)

__version__ = "0.1.0"
__all__ = [*_autograd_names, *_kernel_names]

_PACKAGES = {"atlas", "attention", "data", "experiments", "findings", "grade", "inference", "nn", "plots",
             "register", "scores", "testing", "transformer"}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"minattn.{name}")
    raise AttributeError(f"module 'minattn' has no attribute {name!r}")
