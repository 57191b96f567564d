"""Tiled attention and its dense form at the edges: no keys, and the log-sum-exp in single precision."""

import numpy as np
import pytest

from minattn.attention import causal
from minattn.autograd import Tensor, grad
from minattn.kernels import flash
from minattn.kernels.flash import flash_attention
from tests.kernels import loops
from tests.kernels.loops import inputs, visible_array


@pytest.mark.parametrize("weight", ["softmax", "sigmoid", "relu"])
def test_no_keys_at_once(weight, monkeypatch):
    monkeypatch.setattr(flash, "compiled", lambda *arrays: False)
    *arrays, g = inputs(2, 4, 2, 5, 0, 3, 4, np.float32)
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    out = flash_attention(*xs, weight=weight)
    assert out.shape == (2, 4, 5, 4) and out.dtype == np.float32 and not out.data.any()
    assert all(not d.data.any() for d in grad(out, xs, g))
    if weight == "softmax":
        lse = flash_attention(*arrays, return_lse=True)[1]
        assert lse.shape == (2, 4, 5) and lse.dtype == np.float32 and (lse == -np.inf).all()


def test_log_sum_exp_in_single_precision():
    *arrays, g = inputs(2, 4, 2, 9, 10, 3, 5, np.float32)
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    lse = flash_attention(*xs, mask_mod=causal, return_lse=True)[1]
    seen = visible_array((2, 4, 9, 10), mask=causal)
    assert lse.dtype == np.float32 and flash_attention(*arrays, return_lse=True)[1].dtype == np.float32
    np.testing.assert_allclose(lse.data, loops.forward(*arrays, seen)[1], rtol=0, atol=2e-6)
    wanted = loops.backward(*arrays, 0 * g, seen, g_lse=g[..., 0])
    for got, want in zip(grad(lse, xs[:2], g[..., 0]), wanted, strict=False):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got.data, want, rtol=0, atol=1e-5)
