"""ExLM: expanding, rotary positions with two indices, the model, repeated MLM."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minattn.attention.position import RoPE
from minattn.autograd import Tensor, log_softmax, no_grad
from minattn.kernels import cross_entropy
from minattn.testing import check_grads
from minattn.transformer import Config
from minattn.transformer.exlm import (
    ExLM,
    expand_states,
    mask_always,
    naive_expand,
    naive_rope_2d,
    repeated_mlm_batch,
    rope_2d,
)
from minattn.transformer.state_graph import naive_dag_alignment, naive_transition_matrix

pytestmark = pytest.mark.paper(180)

BOS, EOS, MASK = 0, 1, 2
CONFIG = Config(vocab=9, context=40, layers=2, heads=2, d_model=16, position="rope")


def model(k=3, config=CONFIG, seed=0):
    """An ExLM in float64 with weights large enough for everything to matter."""
    rng = np.random.default_rng(seed)
    net = ExLM(config, k, mask=MASK, bos=BOS, eos=EOS, rng=rng).to(np.float64)
    for p in net.parameters():
        p.data = p.data + 0.3 * rng.standard_normal(p.shape)
    return net


def texts():
    """Three texts of different lengths, with two, one and no [MASK]; what stands behind the ends is junk."""
    ids = np.array([[BOS, 5, MASK, MASK, 7, EOS], [BOS, MASK, 3, EOS, MASK, 4],
                    [BOS, EOS, EOS, BOS, 6, MASK]])
    targets = np.full(ids.shape, -100)
    targets[0, 2:4], targets[1, 1] = (4, 8), 6
    return ids, targets, np.array([6, 4, 2])


# ---- rotary positions with two indices


@pytest.mark.parametrize("B, H, N, D", [(1, 1, 1, 4), (2, 3, 5, 8), (1, 2, 7, 12)])
def test_rope_2d_equals_complex_numbers(B, H, N, D):
    rng = np.random.default_rng(D)
    x, token, state = rng.standard_normal((B, H, N, D)), rng.integers(0, 30, N), rng.integers(0, 5, N)
    want = [[naive_rope_2d(rows, token, state) for rows in heads] for heads in x]
    np.testing.assert_allclose(rope_2d(x, token, state), want, rtol=1e-12, atol=1e-13)
    other = [[naive_rope_2d(rows, token, state, 50.0) for rows in heads] for heads in x]
    np.testing.assert_allclose(rope_2d(x, token, state, base=50.0), other, rtol=1e-12, atol=1e-13)


def test_rope_2d_with_state_zero_is_rope_of_half_the_features():
    rng = np.random.default_rng(0)
    x, token = rng.standard_normal((2, 3, 6, 8)), np.array([0, 1, 1, 3, 8, 21])
    got = rope_2d(x, token, np.zeros(6, int))
    np.testing.assert_allclose(got[..., :4], RoPE(4, pairing="half").rotate(x[..., :4], token), rtol=1e-14)
    np.testing.assert_array_equal(got[..., 4:], x[..., 4:])
    assert np.abs(got - x)[..., 1:, :4].max() > 0.1


def test_rope_2d_has_indices_of_each_text_and_derivatives():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 2, 3, 4))
    token, state = np.array([[0, 1, 2], [4, 4, 9]]), np.array([[0, 1, 2], [3, 0, 1]])
    got = rope_2d(x, token[:, None], state[:, None])
    for b in range(2):
        np.testing.assert_allclose(got[b:b + 1], rope_2d(x[b:b + 1], token[b], state[b]), rtol=1e-14)
    check_grads(lambda x: rope_2d(x, token[:, None], state[:, None]), x)


@settings(max_examples=30, deadline=None)
@given(shift=st.tuples(st.integers(0, 50), st.integers(0, 9)), seed=st.integers(0, 10**6))
def test_scores_depend_on_differences_of_both_indices(shift, seed):
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, 1, 1, 4, 8))
    token, state = rng.integers(0, 20, (2, 4)), rng.integers(0, 5, (2, 4))
    here = rope_2d(q, token[0], state[0]) @ rope_2d(k, token[1], state[1]).mT
    moved = rope_2d(q, token[0] + shift[0], state[0] + shift[1]) @ rope_2d(k, token[1] + shift[0],
                                                                          state[1] + shift[1]).mT
    np.testing.assert_allclose(here, moved, atol=1e-12)


def test_rope_2d_needs_quarters():
    with pytest.raises(ValueError) as caught:
        rope_2d(np.zeros((1, 1, 2, 6)), np.arange(2), np.arange(2))
    assert str(caught.value) == "x: expected a multiple of 4 features, got shape (1, 1, 2, 6)"


# ---- expanding


@settings(max_examples=60, deadline=None)
@given(B=st.integers(1, 4), N=st.integers(1, 8), k=st.integers(1, 5), share=st.floats(0, 1),
       seed=st.integers(0, 10**6))
def test_expand_equals_loops(B, N, k, share, seed):
    rng = np.random.default_rng(seed)
    marked, lengths = rng.random((B, N)) < share, rng.integers(1, N + 1, B)
    at = expand_states(marked, k, lengths)
    states = [naive_expand(row[:n], k) for row, n in zip(marked, lengths, strict=True)]
    longest = max(map(len, states))
    split = [[n for n, (_, j) in enumerate(row) if j] for row in states]
    most = max(map(len, split))
    padded = np.array([row + [(0, 0)] * (longest - len(row)) for row in states])
    np.testing.assert_array_equal(at.token, padded[..., 0])
    np.testing.assert_array_equal(at.state, padded[..., 1])
    np.testing.assert_array_equal(at.nodes, np.array([row + [0] * (most - len(row)) for row in split]))
    assert at.lengths.tolist() == list(map(len, states)) and at.counts.tolist() == list(map(len, split))


def test_expand_all_by_default_and_bad_input():
    marked = np.array([[True, False, True]])
    at = expand_states(marked, 2)
    assert at.token.tolist() == [[0, 0, 1, 2, 2]] and at.state.tolist() == [[1, 2, 0, 1, 2]]
    for arguments, message in [
        ((marked[0], 2), "expanded: expected booleans (B, N), got bool (3,)"),
        ((marked * 1, 2), "expanded: expected booleans (B, N), got int64 (1, 3)"),
        ((marked, 0), "k: expected a whole number ≥ 1, got 0"),
        ((marked, 2, [4]), "lengths: expected values in [1, 3], got [4]"),
    ]:
        with pytest.raises(ValueError) as caught:
            expand_states(*arguments)
        assert str(caught.value) == message


# ---- masking


def test_mask_always_masks_and_spares():
    ids = np.random.default_rng(1).integers(3, 50, (300, 400))
    ids[:, 0] = BOS
    inputs, targets = mask_always(np.random.default_rng(0), ids, MASK, special=(BOS,))
    chosen = targets != -100
    assert abs(chosen[:, 1:].mean() - 0.15) < 0.004 and not chosen[:, 0].any()
    assert (inputs[chosen] == MASK).all() and (inputs[~chosen] == ids[~chosen]).all()
    np.testing.assert_array_equal(targets[chosen], ids[chosen])
    assert (mask_always(np.random.default_rng(0), ids, MASK, 1.0)[0] == MASK).all()
    np.testing.assert_array_equal(mask_always(np.random.default_rng(0), ids, MASK, 0.0)[0], ids)
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError) as caught:
            mask_always(np.random.default_rng(0), ids, MASK, p)
        assert str(caught.value) == f"p: expected a probability in [0, 1], got {p}"


@pytest.mark.parametrize("k, p", [(1, 0.5), (2, 0.5), (4, 0.5), (3, 0.8)])
def test_repeated_mlm_keeps_the_share_of_masks_and_loses_p_to_the_k(k, p):
    ids = np.random.default_rng(2).integers(3, 30, (300, 200))
    inputs, targets = repeated_mlm_batch(np.random.default_rng(3), ids, MASK, k, p)
    assert inputs.shape == targets.shape == (300, 200 * k)
    copies = inputs.reshape(300, 200, k)
    masked = copies == MASK
    n = masked[..., 0].size
    assert abs(masked.mean() - p) < 5 * np.sqrt(p * (1 - p) / (n * k))
    lost = p**k
    assert abs(masked.all(2).mean() - lost) < 5 * np.sqrt(lost * (1 - lost) / n)
    want = np.broadcast_to(ids[..., None], copies.shape)
    np.testing.assert_array_equal(copies[~masked], want[~masked])
    np.testing.assert_array_equal(targets.reshape(copies.shape), np.where(masked, want, -100))


def test_repeated_mlm_with_one_copy_is_masking():
    ids = np.random.default_rng(2).integers(3, 30, (5, 7))
    for got, want in zip(repeated_mlm_batch(np.random.default_rng(0), ids, MASK, 1, 0.3),
                         mask_always(np.random.default_rng(0), ids, MASK, 0.3), strict=True):
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="k: expected a whole number ≥ 1, got 0"):
        repeated_mlm_batch(np.random.default_rng(0), ids, MASK, 0, 0.3)


# ---- the model


def by_hand(net, ids, targets):
    """ExLM's loss and best path of one text: loops for states, transitions, paths; the encoder is ours."""
    state, k, D, C = net.state_dict(), net.k, net.config.d_model, net.config.heads
    states = naive_expand(np.isin(ids, (MASK, BOS, EOS)), k)
    for block in net.lm.encoder.blocks:
        block.attn.position = Fixed(states)
    h = net.lm.encoder(np.array([[ids[i] for i, _ in states]])).data[0]
    for block in net.lm.encoder.blocks:
        block.attn.position = net.places
    nodes = [n for n, (_, j) in enumerate(states) if j]
    with no_grad():
        words = net.lm.norm(_gelu(h[nodes] @ state["lm.dense.weight"].T + state["lm.dense.bias"])).data
    logits = words @ state["lm.encoder.embed.token.weight"].T + state["lm.bias"]
    f = np.concatenate([h[nodes], state["place.weight"][nodes]], 1)
    q, key = (f @ state[f"{name}.weight"].T + state[f"{name}.bias"] for name in ("query", "key"))
    chunks = [x.reshape(len(nodes), C, D // C).transpose(1, 0, 2) for x in (q, key)]
    E = naive_transition_matrix(*chunks, f @ state["gate.weight"].T + state["gate.bias"])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = [BOS, *targets[targets != -100], EOS]
    return *naive_dag_alignment(p, y, E), p, E, y


def _gelu(x):
    from math import erf

    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


class Fixed:
    """Positions of one text by loops."""

    score_mod = None

    def __init__(self, states):
        self.states = np.array(states)

    def rotate(self, x, positions):
        x = np.asarray(x.data if isinstance(x, Tensor) else x)
        return Tensor(np.array([[naive_rope_2d(rows, *self.states.T) for rows in heads] for heads in x]))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_loss_equals_loops_text_by_text(k):
    net, (ids, targets, lengths) = model(k), texts()
    want = [by_hand(net, ids[b, :n], targets[b, :n])[0] for b, n in enumerate(lengths)]
    assert np.ptp(want) > 0.1
    np.testing.assert_allclose(net.loss(ids, targets, lengths).item(), np.mean(want), rtol=1e-10)


def test_one_state_a_mask_is_a_masked_language_model_and_transitions():
    """m · L = Σ cross-entropy of an ordinary masked model − Σ ln E, the former judged by PyTorch."""
    torch = pytest.importorskip("torch")
    net, (ids, targets, _) = model(1), texts()
    ids, targets = ids[:1], targets[:1]
    log_p, E, _ = net(ids)
    y = np.where(ids == MASK, targets, ids)[:, [0, 2, 3, 5]]
    judge = torch.nn.functional.cross_entropy
    entropy = judge(torch.tensor(log_p.data[0]), torch.tensor(y[0]), reduction="sum")
    np.testing.assert_allclose(cross_entropy(log_p, y, reduction="sum").item(), entropy.item(), rtol=1e-10)
    steps = np.diagonal(E.data[0], 1).sum()
    assert steps < -0.1
    np.testing.assert_allclose(4 * net.loss(ids, targets).item(), entropy.item() - steps, rtol=1e-10)


def test_gradients_of_the_model_are_those_of_differences():
    net, (ids, targets, lengths) = model(2), texts()
    net.loss(ids, targets, lengths).backward()
    rng = np.random.default_rng(0)
    for name, p in net.named_parameters():
        v, here = rng.standard_normal(p.shape), p.data
        ends = []
        for h in (1e-6, -1e-6):
            p.data = here + h * v
            ends.append(net.loss(ids, targets, lengths).item())
        p.data = here
        np.testing.assert_allclose((p.grad * v).sum(), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-8,
                                   err_msg=name)
    for name in ("query.weight", "key.weight", "gate.weight", "place.weight",
                 "lm.encoder.embed.token.weight"):
        assert np.abs(dict(net.named_parameters())[name].grad).max() > 1e-6, name


def test_what_stands_behind_the_end_changes_nothing():
    net, (ids, targets, lengths) = model(), texts()
    want = net.loss(ids, targets, lengths).item()
    other = np.where(np.arange(6) < lengths[:, None], ids, 8)
    assert (other != ids).any() and net.loss(other, targets, lengths).item() == pytest.approx(want, rel=1e-13)
    np.testing.assert_array_equal(net.fill(other, lengths)[1], net.fill(ids, lengths)[1])


def test_both_indices_reach_the_encoder():
    """States of one [MASK] share token and embedding: only the second index tells them apart."""
    net, (ids, _, _) = model(), texts()
    at = net.expand(ids[:1])
    h = net.hidden(ids[:1], at).data[0]
    assert at.token[0, 4:7].tolist() == [2, 2, 2]
    assert np.abs(h[4] - h[5]).max() > 1e-4
    flat = type(at)(at.token, at.state * 0, at.lengths, at.nodes, at.counts)
    same = net.hidden(ids[:1], flat).data[0]
    np.testing.assert_allclose(same[4], same[5], atol=1e-13)
    np.testing.assert_allclose(same[4], same[6], atol=1e-13)
    assert np.abs(same[4] - same[7]).max() > 1e-4  # the other [MASK]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fill_says_the_best_words_of_the_best_path(seed):
    net, (ids, _, lengths) = model(seed=seed), texts()
    with no_grad():
        out, paths = net.fill(ids, lengths)
    for b, n in enumerate(lengths):
        gaps = np.flatnonzero(ids[b, :n] == MASK)
        best = (-np.inf, None, None)
        _, _, _, p, E, _ = by_hand(net, ids[b, :n], np.where(ids[b, :n] == MASK, 3, -100))
        for words in np.ndindex(*[6] * len(gaps)):  # ids 3 … 8 are words
            y = [BOS, *(w + 3 for w in words), EOS]
            _, path, chance = naive_dag_alignment(p, y, E)
            best = max(best, (chance, path, tuple(w + 3 for w in words)))
        assert tuple(paths[b][:len(gaps) + 2]) == best[1] and (paths[b][len(gaps) + 2:] == -1).all()
        assert tuple(out[b, gaps]) == best[2]
        rest = np.setdiff1d(np.arange(6), gaps)
        np.testing.assert_array_equal(out[b, rest], ids[b, rest])


def test_initial_weights_are_gpt2s():
    net = ExLM(CONFIG, mask=MASK, bos=BOS, eos=EOS, rng=np.random.default_rng(0))
    assert net.k == 4
    for name in ("query", "key", "gate"):
        layer = getattr(net, name)
        assert 0.015 < layer.weight.data.std() < 0.025 and not layer.bias.data.any()
    assert net.query.weight.shape == net.key.weight.shape == (16, 32) and net.gate.weight.shape == (2, 32)
    assert net.place.weight.shape == (40, 16)


def test_loss_falls_in_training():
    from minattn import nn

    net, (ids, targets, lengths) = model(2), texts()
    optimizer = nn.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = net.loss(ids, targets, lengths)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_bad_input():
    from dataclasses import replace

    kinds = {"mask": MASK, "bos": BOS, "eos": EOS, "rng": np.random.default_rng(0)}
    net, (ids, targets, lengths) = model(), texts()
    three_lengths = np.array([6, 4, 7])
    short = ExLM(replace(CONFIG, context=11), 3, **kinds)
    cases = [
        (lambda: ExLM(replace(CONFIG, position="learned"), **kinds),
         'config: expected position="rope", got \'learned\''),
        (lambda: ExLM(replace(CONFIG, d_model=12), **kinds),
         "config: expected a multiple of 4 features a head, got 6"),
        (lambda: ExLM(CONFIG, **{**kinds, "bos": EOS}),
         "mask, bos, eos: expected three ids below 9, got {'mask': 2, 'bos': 1, 'eos': 1}"),
        (lambda: ExLM(CONFIG, **{**kinds, "bos": 9}),
         "mask, bos, eos: expected three ids below 9, got {'mask': 2, 'bos': 9, 'eos': 1}"),
        (lambda: ExLM(CONFIG, **{**kinds, "mask": -1}),
         "mask, bos, eos: expected three ids below 9, got {'mask': -1, 'bos': 0, 'eos': 1}"),
        (lambda: ExLM(CONFIG, 0, **kinds), "k: expected a whole number ≥ 1, got 0"),
        (lambda: net(ids[:, 1:]), "ids: expected every text to begin with 0 and to end with 1"),
        (lambda: net(ids), "ids: expected every text to begin with 0 and to end with 1"),
        (lambda: net(ids, three_lengths), "lengths: expected values in [1, 6], got [6 4 7]"),
        (lambda: short(ids, lengths), "ids: expected at most 11 states, the context, got 14"),
        (lambda: net.loss(ids, targets[:, 1:], lengths),
         "targets: expected a word at every [MASK] of ids (3, 6) and -100 elsewhere, got shape (3, 5)"),
        (lambda: net.loss(ids, np.where(targets == 8, -100, targets), lengths),
         "targets: expected a word at every [MASK] of ids (3, 6) and -100 elsewhere, got shape (3, 6)"),
        (lambda: net.loss(ids, np.where(ids == 7, 7, targets), lengths),
         "targets: expected a word at every [MASK] of ids (3, 6) and -100 elsewhere, got shape (3, 6)"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message
    assert ExLM(replace(CONFIG, context=14), 3, **kinds)(ids, lengths)[0].shape == (3, 12, 9)
    assert isinstance(log_softmax(net(ids, lengths)[0], -1), Tensor)
