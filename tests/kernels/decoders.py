"""Small decoders for the tests of inference."""

import numpy as np

from minattn.transformer import GPT, Config

VOCAB = 11


def llama(heads=4, kv_heads=2, tied=True, layers=2, seed=0, size=0.3, d_head=4, context=32, dtype=np.float64):
    """A small Llama with weights that do something."""
    config = Config(vocab=VOCAB, context=context, layers=layers, heads=heads, kv_heads=kv_heads,
                    d_model=d_head * heads, d_mlp=7, norm="rms", activation="swiglu", position="rope",
                    bias=False, tied=tied)
    return stirred(GPT(config, rng=np.random.default_rng(seed)), seed, size).to(dtype)


def gpt(seed=0, context=64, size=0.3, dtype=np.float64):
    """A small GPT-2: learned positions, layer norms, biases."""
    config = Config(vocab=VOCAB, context=context, layers=2, heads=2, d_model=8)
    return stirred(GPT(config, rng=np.random.default_rng(seed)), seed, size).to(dtype)


def stirred(model, seed, size):
    rng = np.random.default_rng([seed, 1])
    for p in model.parameters():
        p.data = p.data + size * rng.standard_normal(p.shape).astype(p.dtype)
    return model.eval()
