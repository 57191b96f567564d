"""`minattn.autograd.spectral` against PyTorch, finite differences and its own rules."""

import numpy as np
import pytest

from minattn import autograd as ag
from minattn.autograd import Tensor, grad
from tests.autograd import case as checks
from tests.autograd.cases import SPECTRAL


@checks.each(SPECTRAL)
def test_samples(case):
    checks.check_samples(case)


@checks.each(SPECTRAL)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each([c for c in SPECTRAL if c.order and c.exact])
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(SPECTRAL)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(SPECTRAL)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)


@checks.each(SPECTRAL)
def test_other_library(case, other_library):
    checks.check_other_library(case, other_library)


def dft(x):
    n = x.shape[-1]
    k = np.arange(n)
    return x @ np.exp(-2j * np.pi * np.outer(k, k) / n)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_transforms_by_their_definition(n):
    rng = np.random.default_rng(n)
    x, z = rng.standard_normal((2, n)), rng.standard_normal((2, n)) + 1j * rng.standard_normal((2, n))
    np.testing.assert_allclose(ag.rfft(x), dft(x)[:, : n // 2 + 1], atol=1e-12)
    np.testing.assert_allclose(ag.fft(z), dft(z), atol=1e-12)
    np.testing.assert_allclose(ag.ifft(ag.fft(z)), z, atol=1e-12)
    np.testing.assert_allclose(ag.irfft(ag.rfft(x), n), x, atol=1e-12)


def test_lengths():
    x = np.arange(1.0, 6)
    np.testing.assert_allclose(ag.rfft(x, 3), np.fft.rfft(x[:3]))
    np.testing.assert_allclose(ag.rfft(x, 8), np.fft.rfft(np.pad(x, (0, 3))))
    assert ag.irfft(np.ones(4, complex)).shape == (6,) and ag.irfft(np.ones((3, 2), complex), 5, 0).shape == (
        5,
        2,
    )
    for n in (None, 4, 5, 9):
        np.testing.assert_allclose(ag.irfft(dft(x), n), np.fft.irfft(dft(x), n), atol=1e-12)


def test_complex_of_infinities():
    """1j · ∞ would have a NaN for its real part."""
    z = ag.complex(np.array([1.0, 2.0]), np.array([np.inf, -np.inf]))
    assert z.real.tolist() == [1, 2] and z.imag.tolist() == [np.inf, -np.inf]
    for args in ((np.ones(2, np.float32), 2), (2, np.ones(2, np.float32))):
        assert ag.complex(*args).dtype == np.complex64
    for args in ((np.ones(2), 2), (2, np.ones(2))):
        assert ag.complex(*args).dtype == np.complex128
    assert ag.complex(np.ones((2, 1)), np.ones(3)).shape == (2, 3)


def test_parts_of_real_numbers():
    x = Tensor(np.ones(3), requires_grad=True)
    assert ag.real(x).data.tolist() == [1, 1, 1] and ag.imag(x).data.tolist() == [0, 0, 0]
    (g,) = grad(ag.imag(x), x, np.ones(3))
    assert g.dtype == np.float64 and not g.data.any()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ag.rfft(np.ones((2, 0))), "n: expected a length of at least 1, got 0"),
        (lambda: ag.irfft(np.ones(1, complex)), "n: expected a length of at least 1, got 0"),
        (lambda: ag.irfft(np.ones(3, complex), 0), "n: expected a length of at least 1, got 0"),
        (lambda: ag.rfft(np.ones(3), 0), "n: expected a length of at least 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rfft_is_of_real_signals():
    with pytest.raises(TypeError, match="rfft: expected real numbers, got complex128"):
        ag.rfft(np.ones(3, complex))
