"""Paper 5: relations and symbols as values, alone and beside standard heads."""

import numpy as np
import pytest

from minattn.attention import MultiHeadAttention, causal
from minattn.attention.multihead import naive_multihead
from minattn.attention.position import ALiBi, RoPE
from minattn.autograd import Tensor, grad
from minattn.scores.relational import (
    DualAttention,
    RelationalAttention,
    SymbolicAttention,
    SymbolTable,
    naive_relational_heads,
    positional_symbols,
    relations,
    relative_symbols,
)
from minattn.testing import check_causal, check_grads

pytestmark = pytest.mark.paper(5)

# B, N, M, d_model, heads, relations
SHAPES = [(1, 1, 1, 2, 1, 1), (2, 4, 6, 6, 3, 2), (3, 5, 2, 8, 1, 4), (1, 3, 7, 6, 2, 3)]


def in_float64(module, seed=3):
    rng = np.random.default_rng(seed)
    for p in module.parameters():
        p.data = 0.6 * rng.standard_normal(p.shape)
    return module


def inputs(B, N, M, D, seed=0):
    rng = np.random.default_rng([seed, B, N, M])
    return [rng.standard_normal(s) for s in ((B, N, D), (B, M, D), (B, M, D), (N, M, D))]


def layer_of(D, heads, R, seed=0, **how):
    return in_float64(RelationalAttention(D, heads, R, rng=np.random.default_rng(seed), **how))


def some(b, h, i, j):
    """Irregular in all but b, and the first key is always seen."""
    return ((2 * i + j + h) % 3 > 0) | (j == 0)


@pytest.mark.parametrize("mask", [None, some])
@pytest.mark.parametrize("kind", ["positional", "own", "relative"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_heads_equal_the_loops(shape, symmetric, kind, mask):
    B, N, M, D, H, R = shape
    x, y, own, pairs = inputs(B, N, M, D)
    layer = layer_of(D, H, R, symmetric=symmetric)
    symbols = {"positional": own[0], "own": own, "relative": pairs}[kind]
    relative = kind == "relative"
    heads = layer.heads(x, y, symbols, mask, relative=relative).data
    for b in range(B):
        want = naive_relational_heads(x[b], y[b], symbols[b] if kind == "own" else symbols,
                                      layer.state_dict(), H, R, mask)
        np.testing.assert_allclose(heads[b], want, rtol=1e-11, atol=1e-12)
    joined = np.concatenate([heads[:, h] for h in range(H)], -1)
    want = joined @ layer.out_proj.weight.data.T + layer.out_proj.bias.data
    out = layer(x, y, symbols=symbols, mask_mod=mask, relative=relative)
    np.testing.assert_allclose(out.data, want, atol=1e-11)


@pytest.mark.parametrize("relative", [False, True])
def test_gradients(relative):
    x, y, own, pairs = inputs(2, 3, 4, 6)
    layer, g = layer_of(6, 2, 3), np.random.default_rng(5).standard_normal((2, 2, 3, 3))
    symbols = pairs if relative else own
    check_grads(lambda *t: layer.heads(*t, some, relative=relative), x, y, symbols, order=1)
    leaves = list(layer.parameters())[:-2]  # all but W_O
    found = grad(layer.heads(x, y, symbols, relative=relative), leaves, g)
    rng, step = np.random.default_rng(6), 1e-6
    for p, slope in zip(leaves, found, strict=True):
        was, along, ends = p.data, rng.standard_normal(p.shape), []
        for sign in (1, -1):
            p.data = was + sign * step * along
            loops = [naive_relational_heads(x[b], y[b], symbols if relative else own[b],
                                            layer.state_dict(), 2, 3) for b in range(2)]
            ends.append((g * np.stack(loops)).sum())
        p.data = was
        want = (ends[0] - ends[1]) / (2 * step)
        assert (slope.data * along).sum() == pytest.approx(want, rel=1e-6, abs=1e-7)


def test_scale_of_relations():
    x, y, own, _ = inputs(2, 3, 4, 6)
    layer, twice = layer_of(6, 2, 3), layer_of(6, 2, 3, scale=2 / np.sqrt(2))
    for each in (layer, twice):
        each.from_symbols.weight.data = np.zeros((6, 6))
    np.testing.assert_allclose(twice.heads(x, y, own).data, 2 * layer.heads(x, y, own).data, atol=1e-12)
    assert layer.scale == 1 / np.sqrt(2)


def test_relations():
    x, y, _, _ = inputs(2, 3, 4, 6)
    layer = layer_of(6, 2, 3)
    q, k = layer.sides(x, y)
    r = relations(q, k).data
    w, u = layer.q_rel.weight.data, layer.k_rel.weight.data
    assert r.shape == (2, 3, 4, 3)
    for l in range(3):
        part = slice(2 * l, 2 * l + 2)
        want = (x @ w[part].T) @ (y @ u[part].T).swapaxes(-1, -2) / np.sqrt(2)
        np.testing.assert_allclose(r[..., l], want, atol=1e-12)
    np.testing.assert_allclose(relations(q, k, 1.0).data, r * np.sqrt(2), atol=1e-12)
    both = layer_of(6, 2, 3, symmetric=True)
    r = relations(*both.sides(x, x)).data
    np.testing.assert_allclose(r, r.transpose(0, 2, 1, 3), atol=1e-12)
    assert len(list(both.parameters())) == len(list(layer.parameters())) - 1


def rotation(D, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0]


def test_objects_may_be_rotated_if_all_maps_follow():
    x, _, _, _ = inputs(2, 4, 4, 6)
    table, turn = np.random.default_rng(4).standard_normal((4, 6)), rotation(6)
    layer = layer_of(6, 2, 3)
    before = layer(x, symbols=table).data
    maps = [layer.q_rel, layer.k_rel]
    for m in maps:
        m.weight.data = m.weight.data @ turn
    assert np.abs(layer(x @ turn, symbols=table).data - before).max() > 1e-2
    for m in (layer.q_proj, layer.k_proj):
        m.weight.data = m.weight.data @ turn
    np.testing.assert_allclose(layer(x @ turn, symbols=table).data, before, atol=1e-11)


def test_with_plain_maps_any_rotation_will_do_without_touching_a_weight():
    x, _, _, _ = inputs(2, 4, 4, 6)
    table, turn = np.random.default_rng(4).standard_normal((4, 6)), rotation(6)
    layer = layer_of(6, 1, 1)
    standard = in_float64(MultiHeadAttention(6, 1, bias=False, rng=np.random.default_rng(0)))
    for m in (layer.q_rel, layer.k_rel, layer.q_proj, layer.k_proj, standard.q_proj, standard.k_proj,
              standard.v_proj, standard.out_proj):
        m.weight.data = np.eye(6)
    np.testing.assert_allclose(layer(x @ turn, symbols=table).data, layer(x, symbols=table).data, atol=1e-11)
    moved, was = standard(x @ turn).data, standard(x).data
    np.testing.assert_allclose(moved, was @ turn, atol=1e-11)
    assert np.abs(moved - was).max() > 0.1


def test_without_relations_only_the_weights_know_the_objects():
    x, y, own, _ = inputs(2, 3, 4, 6)
    layer = layer_of(6, 2, 3)
    layer.from_relations.weight.data = np.zeros((6, 3))
    layer.q_proj.weight.data = np.zeros((6, 6))  # all weights alike
    table = own[0]
    want = np.broadcast_to((table @ layer.from_symbols.weight.data.T).mean(0), (2, 3, 6))
    heads = layer.heads(x, y, table).data
    np.testing.assert_allclose(np.concatenate([heads[:, 0], heads[:, 1]], -1), want, atol=1e-12)


def test_no_relational_heads_is_multi_head_attention():
    x, y, _, _ = inputs(2, 3, 4, 6)
    dual = in_float64(DualAttention(6, 3, 0, rng=np.random.default_rng(0)))
    assert dual.relational is None
    np.testing.assert_allclose(dual(x).data, naive_multihead(x, x, x, dual.sensory.state_dict(), 3, 3),
                               atol=1e-12)
    np.testing.assert_allclose(dual(x, y).data, naive_multihead(x, y, y, dual.sensory.state_dict(), 3, 3),
                               atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_dual_is_both_kinds_side_by_side(symmetric):
    x, y, _, _ = inputs(2, 3, 4, 8)
    rng = np.random.default_rng(0)
    dual = in_float64(DualAttention(8, 1, 3, symbols=SymbolTable(8, 9, rng=rng), n_relations=2, d_relation=5,
                                    symmetric=symmetric, rng=rng))
    assert dual.relational.out_proj.bias is None and dual.relational.symmetric == symmetric
    assert dual.relational.q_rel.weight.shape == (10, 8)
    s = dual.sensory.state_dict()
    q, k, v = (t @ s[f"{c}_proj.weight"].T + s[f"{c}_proj.bias"]
               for c, t in zip("qkv", (x, y, y), strict=True))
    p = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(2))
    sensory = p / p.sum(-1, keepdims=True) @ v
    related = np.stack([naive_relational_heads(x[b], y[b], dual.symbols.table.data[:4],
                                               dual.relational.state_dict(), 3, 2) for b in range(2)])
    side_by_side = np.concatenate([sensory, *related.transpose(1, 0, 2, 3)], -1)
    w_o = np.concatenate([dual.sensory.out_proj.weight.data, dual.relational.out_proj.weight.data], 1)
    want = side_by_side @ w_o.T + dual.sensory.out_proj.bias.data
    np.testing.assert_allclose(dual(x, y).data, want, atol=1e-11)
    alone = DualAttention(8, 0, 2, symbols=SymbolTable(8, 9, rng=rng), rng=rng)
    assert alone.sensory is None and alone.relational.out_proj.bias is not None
    x32 = x.astype(np.float32)
    np.testing.assert_array_equal(
        alone(x32).data, alone.relational(x32, symbols=alone.symbols.table.data[:3]).data)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("position", [None, RoPE(2), ALiBi(2)])
def test_causal(relative, position):
    x, _, _, _ = inputs(2, 5, 5, 4)
    rng = np.random.default_rng(0)
    symbols = in_float64(SymbolTable(4, 5, relative, rng=rng))
    layer = layer_of(4, 2, 2, position=position)
    check_causal(lambda t: layer(t, symbols=symbols(t, 5), mask_mod=causal, relative=relative), x)
    dual = in_float64(DualAttention(4, 1, 1, symbols=symbols, rng=rng))
    check_causal(lambda t: dual(t, mask_mod=causal), x)
    if position is not None:
        plain = layer_of(4, 2, 2)
        how = {"symbols": symbols(x, 5), "relative": relative}
        assert np.abs(plain(x, **how).data - layer(x, **how).data).max() > 1e-3


def test_a_query_that_sees_nothing():
    x, y, own, _ = inputs(2, 3, 4, 6)
    layer = layer_of(6, 2, 3)
    leaf = Tensor(x, requires_grad=True)
    heads = layer.heads(leaf, y, own, lambda b, h, i, j: (i != 1) & (j >= 0))
    np.testing.assert_array_equal(heads.data[:, :, 1], 0)
    np.testing.assert_array_equal(grad(heads, [leaf], np.ones(heads.shape))[0].data[:, 1], 0)


@pytest.mark.parametrize("n_heads", [1, 2])
def test_symbolic_attention_equals_the_loops(n_heads):
    _, y, _, _ = inputs(2, 3, 4, 6)
    fresh = SymbolicAttention(6, 5, n_heads, rng=np.random.default_rng(0))
    assert fresh.templates.shape == fresh.library.shape == (5, 6)
    assert 0.5 < fresh.templates.data.std() < 1.5
    module = in_float64(fresh)
    found, d = module(y).data, 6 // n_heads
    for b, j in np.ndindex(2, 4):
        query = module.query.weight.data @ y[b, j] + module.query.bias.data
        for h in range(n_heads):
            part = slice(h * d, (h + 1) * d)
            scores = np.array([t[part] @ query[part] for t in module.templates.data]) / np.sqrt(d)
            weights = np.exp(scores) / np.exp(scores).sum()
            want = sum(w * s[part] for w, s in zip(weights, module.library.data, strict=True))
            np.testing.assert_allclose(found[b, j, part], want, atol=1e-12)
    np.testing.assert_array_equal(module(y, 9).data, found)


def test_tables():
    table = np.arange(10.0).reshape(5, 2)
    np.testing.assert_array_equal(positional_symbols(table, 3), table[:3])
    found = relative_symbols(table, 4, 6)
    for i, j in np.ndindex(4, 6):
        np.testing.assert_array_equal(found[i, j], table[min(max(j - i, -2), 2) + 2])
    for relative, size in ((False, 7), (True, 13)):
        module = SymbolTable(4, 7, relative, rng=np.random.default_rng(0))
        assert module.table.shape == (size, 4) and 0.5 < module.table.data.std() < 1.5
        got = module(np.zeros((2, 5, 4)), 3)
        assert got.shape == ((3, 5, 4) if relative else (5, 4))


def test_mistakes():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^table: expected at least 4 rows, one an object, got 3$"):
        positional_symbols(np.zeros((3, 2)), 4)
    with pytest.raises(ValueError, match=r"^table: expected an odd number of rows, 2L − 1, got 4$"):
        relative_symbols(np.zeros((4, 2)), 3, 3)
    with pytest.raises(ValueError, match=r"^n_heads: expected a divisor of d_model=6, got 4$"):
        SymbolicAttention(6, 3, 4, rng=rng)
    with pytest.raises(ValueError, match=r"^n_heads: expected a divisor of d_model=6, got 4$"):
        RelationalAttention(6, 4, 2, rng=rng)
    with pytest.raises(ValueError, match=r"^n_relations: expected a divisor of d_model=6, got 4$"):
        RelationalAttention(6, 2, 4, rng=rng)
    with pytest.raises(ValueError, match=r"^n_symbols: "):
        SymbolicAttention(6, 0, rng=rng)
    with pytest.raises(ValueError, match=r"^length: "):
        SymbolTable(6, 0, rng=rng)
    layer = layer_of(6, 2, 3)
    with pytest.raises(ValueError, match=r"^symbols: expected shape \(4, 6\) or \(2, 4, 6\), got \(3, 6\)$"):
        layer(np.zeros((2, 3, 6)), np.zeros((2, 4, 6)), symbols=np.zeros((3, 6)))
    with pytest.raises(ValueError, match=r"^symbols: expected shape \(3, 4, 6\), got \(4, 6\)$"):
        layer(np.zeros((2, 3, 6)), np.zeros((2, 4, 6)), symbols=np.zeros((4, 6)), relative=True)
    for pair in ((-1, 2), (0, 0), (2, 2)):
        with pytest.raises(ValueError, match=r"^n_sensory, n_relational: expected numbers ≥ 0 whose sum"):
            DualAttention(6, *pair, rng=rng)
    with pytest.raises(ValueError, match=r"^symbols: expected a module, relational heads need it, got None$"):
        DualAttention(6, 1, 1, rng=rng)
    dual = DualAttention(6, 1, 1, symbols=SymbolTable(6, 3, rng=rng), rng=rng)
    with pytest.raises(ValueError, match=r"^cache: expected None, relational heads keep none, got list$"):
        dual(np.zeros((1, 2, 6), np.float32), cache=[])
