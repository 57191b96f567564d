"""Digits: every image once, values as in scikit-learn."""

import numpy as np
import pytest

from minattn.data import digits

datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")


def test_every_image_comes_once_with_its_label():
    images, labels = datasets.load_digits(return_X_y=True)
    d = digits(np.random.default_rng(0), test=0.3, dtype=np.float64)
    assert d.test_images.shape == (539, 8, 8) and d.train_images.shape == (1258, 8, 8)
    mine = np.concatenate([d.train_images, d.test_images]).reshape(-1, 64) * 16
    got = np.column_stack([mine, np.concatenate([d.train_labels, d.test_labels])])
    want = np.column_stack([images, labels])
    assert (got[np.lexsort(got.T)] == want[np.lexsort(want.T)]).all()


def test_split_depends_on_the_generator_alone():
    a, b, c = (digits(np.random.default_rng(s)) for s in (0, 0, 1))
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert (a.train_labels != c.train_labels).any()
    assert a.train_images.dtype == np.float32 and 0 <= a.train_images.min() and a.train_images.max() == 1
    assert len(set(a.test_labels)) == 10


def test_bad_input():
    for test in (0, 1, -0.1, np.nan):
        with pytest.raises(ValueError, match="test"):
            digits(np.random.default_rng(0), test=test)
    with pytest.raises(TypeError, match="rng"):
        digits(0)
