"""A Llama written head by head, and the same as a `GPT`."""

from dataclasses import replace

import numpy as np
import pytest

from minattn.transformer import GPT, Config
from minattn.transformer.gpt import naive_llama

LLAMA = Config(vocab=13, context=16, layers=2, heads=4, kv_heads=2, d_model=16, norm="rms", bias=False,
               activation="swiglu", position="rope")


@pytest.mark.parametrize("change", [{}, {"kv_heads": 1}, {"kv_heads": None, "tied": False},
                                    {"heads": 1, "kv_heads": 1},
                                    {"head_size": 6, "rope_base": 300.0, "norm_eps": 0.1, "d_mlp": 7}])
@pytest.mark.parametrize("N", [1, 2, 9])
def test_the_model_is_the_naive_llama(change, N):
    config = replace(LLAMA, **change)
    model = GPT(config, rng=np.random.default_rng(0)).to(np.float64)
    for p in model.parameters():
        p.data = p.data + 0.4 * np.random.default_rng(p.size).standard_normal(p.shape)
    ids = np.random.default_rng(N).integers(0, 13, N)
    want = naive_llama(ids, model.state_dict(), config)
    assert want.shape == (N, 13) and want.dtype == np.float64 and want.std() > 0.3
    np.testing.assert_allclose(model(ids[None]).data[0], want, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(model.next_logits(ids[None]).data[0], want[-1], rtol=1e-10, atol=1e-10)


def test_the_naive_llama_keeps_the_dtype_of_its_weights():
    model = GPT(LLAMA, rng=np.random.default_rng(0))
    assert naive_llama([1, 2, 3], model.state_dict(), LLAMA).dtype == np.float32
