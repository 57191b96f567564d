"""Handwritten digits: scikit-learn's copy of the UCI set, 8 by 8 pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ._check import generator

__all__ = ["Digits", "digits"]


class Digits(NamedTuple):
    """Images (n, 8, 8) with values in [0, 1] and labels (n,) in 0..9, for training and for testing."""

    train_images: NDArray[np.floating]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.floating]
    test_labels: NDArray[np.int64]


def digits(rng: np.random.Generator, test: float = 0.2, dtype: DTypeLike = np.float32) -> Digits:
    """The 1,797 digits in random order, a share of them kept for testing.

    Parameters
    ----------
    rng : numpy.random.Generator
        Decides the split: every image comes exactly once.
    test : float
        Share of test images, strictly between 0 and 1.
    dtype
        Of the images.

    Returns
    -------
    Digits
        Source: E. Alpaydin and C. Kaynak, Optical recognition of handwritten digits, UCI repository (1998),
        CC BY 4.0; pixel values 0..16 divided by 16.
    """
    generator(rng)
    if not 0 < test < 1:
        raise ValueError(f"test must lie strictly between 0 and 1, got {test}")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits needs scikit-learn: python -m pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8).astype(dtype)
    order, n = rng.permutation(len(images)), round(test * len(images))
    rest, kept = order[n:], order[:n]
    return Digits(images[rest], labels[rest].astype(np.int64), images[kept], labels[kept].astype(np.int64))
