import numpy as np
import pytest
import torch
from torch.nn.utils import rnn

import minattn as mn
from minattn import nn
from minattn.autograd import Tensor
from minattn.nn.gru import gru_naive, gru_scan, gru_step
from minattn.nn.lstm import lstm_naive, lstm_scan, lstm_step
from minattn.testing import check_grads

from .twin import follow, pair

FORMS = [(nn.GRU, torch.nn.GRU), (nn.LSTM, torch.nn.LSTM)]


@pytest.fixture
def rng():
    return np.random.default_rng(31)


def packed(module, lengths):
    """PyTorch's way of sequences of unequal length, back as a padded batch."""

    def call(x, *state):
        rows = rnn.pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        out, final = module(rows, *state)
        return rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], final

    return call


def with_state(module):
    """Call with the parts of the state as arguments of their own, so that `follow` differentiates by them."""
    return lambda x, *state: module(x, state[0] if len(state) == 1 else state)


@pytest.mark.parametrize("ours, theirs", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_they_are_pytorchs(rng, ours, theirs, layers, bidirectional, bias):
    twin = theirs(3, 4, layers, bias, batch_first=True, bidirectional=bidirectional)
    follow(ours(3, 4, layers, bidirectional, bias, rng=rng), twin, rng, (2, 5, 3))


@pytest.mark.parametrize("ours, theirs", FORMS)
@pytest.mark.parametrize("B, N", [(1, 1), (1, 6), (4, 1)])
def test_small_shapes(rng, ours, theirs, B, N):
    twin = theirs(3, 4, 2, batch_first=True, bidirectional=True)
    still = "weight_hh" if N == 1 else "nothing"  # with one position it only ever meets the initial zeros
    follow(ours(3, 4, 2, True, rng=rng), twin, rng, (B, N, 3), still=still)


@pytest.mark.parametrize("ours, theirs", FORMS)
def test_hidden_size_one(rng, ours, theirs):
    follow(ours(1, 1, rng=rng), theirs(1, 1, batch_first=True), rng, (2, 4, 1))


@pytest.mark.parametrize("ours, theirs", FORMS)
def test_initial_state_and_its_gradient(rng, ours, theirs):
    mine, twin = ours(3, 4, 2, True, rng=rng), theirs(3, 4, 2, batch_first=True, bidirectional=True)
    shapes = [(2, 5, 3)] + [(4, 2, 4)] * (1 if ours is nn.GRU else 2)
    follow(mine, twin, rng, *shapes, call_ours=with_state(mine), call_theirs=with_state(twin))


@pytest.mark.parametrize("ours, theirs", FORMS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_unequal_lengths_are_pytorchs_packed_sequences(rng, ours, theirs, bidirectional):
    lengths = [4, 1, 6, 3]
    mine = ours(3, 4, 2, bidirectional, rng=rng)
    twin = theirs(3, 4, 2, batch_first=True, bidirectional=bidirectional)
    follow(mine, twin, rng, (4, 6, 3), call_ours=lambda x: mine(x, lengths=lengths),
           call_theirs=packed(twin, lengths))


@pytest.mark.parametrize("form", [nn.GRU, nn.LSTM])
class TestPadding:
    def test_what_stands_past_the_end_goes_nowhere(self, rng, form):
        layer = form(3, 4, 2, True, rng=rng).to(np.float64)
        x, lengths = rng.standard_normal((2, 5, 3)), np.array([3, 5])
        junk = x.copy()
        junk[0, 3:] = np.nan
        u = rng.standard_normal((2, 5, 8))
        results = []
        for values in (x, junk):
            values = Tensor(values, requires_grad=True)
            layer.zero_grad()
            out, _ = layer(values, lengths=lengths)
            out.backward(u)
            results.append([out.data, values.grad, *(p.grad for p in layer.parameters())])
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)
        assert (results[0][0][0, 3:] == 0).all() and (results[0][1][0, 3:] == 0).all()
        assert np.abs(results[0][1][0, :3]).min() > 0

    def test_a_padded_batch_equals_the_sequences_one_by_one(self, rng, form):
        layer = form(3, 4, 2, True, rng=rng).to(np.float64)
        x, lengths = rng.standard_normal((3, 6, 3)), [6, 2, 4]
        out, final = layer(x, lengths=lengths)
        for b, n in enumerate(lengths):
            alone, last = layer(x[b : b + 1, :n])
            np.testing.assert_allclose(out.data[b, :n], alone.data[0], rtol=1e-12, atol=1e-14)
            pairs = [(final, last)] if form is nn.GRU else zip(final, last, strict=True)
            for got, want in pairs:
                np.testing.assert_allclose(got.data[:, b], want.data[:, 0], rtol=1e-12, atol=1e-14)

    def test_an_empty_sequence_keeps_its_initial_state(self, rng, form):
        layer = form(3, 4, rng=rng)
        start = rng.standard_normal((1, 2, 4)).astype(np.float32)
        state = start if form is nn.GRU else (start, -start)
        out, final = layer(rng.standard_normal((2, 5, 3)).astype(np.float32), state, lengths=[0, 5])
        assert (out.data[0] == 0).all() and (out.data[1] != 0).all()
        parts = (final,) if form is nn.GRU else final
        for got, want in zip(parts, (start, -start), strict=False):
            np.testing.assert_array_equal(got.data[0, 0], want[0, 0])
            assert not np.array_equal(got.data[0, 1], want[0, 1])

    def test_full_lengths_change_nothing(self, rng, form):
        layer = form(3, 4, 1, True, rng=rng).to(np.float64)
        x = rng.standard_normal((2, 5, 3))
        np.testing.assert_array_equal(layer(x)[0].data, layer(x, lengths=[5, 5])[0].data)


@pytest.mark.parametrize("form", [nn.GRU, nn.LSTM])
class TestLaws:
    def test_the_past_alone_is_seen(self, rng, form):
        layer = form(3, 4, 2, rng=rng)
        x = rng.standard_normal((1, 6, 3)).astype(np.float32)
        changed = x.copy()
        changed[0, 3] += 1
        differs = (layer(x)[0].data != layer(changed)[0].data).any((0, 2))
        np.testing.assert_array_equal(differs, [False] * 3 + [True] * 3)

    @pytest.mark.parametrize("cut", [1, 3, 5])
    def test_a_sequence_may_be_cut_anywhere(self, rng, form, cut):
        layer = form(3, 4, 2, rng=rng).to(np.float64)
        x = rng.standard_normal((2, 6, 3))
        whole, final = layer(x)
        first, state = layer(x[:, :cut])
        second, end = layer(x[:, cut:], state)
        joined = np.concatenate([first.data, second.data], 1)
        np.testing.assert_allclose(joined, whole.data, rtol=1e-12, atol=1e-14)
        pairs = [(end, final)] if form is nn.GRU else zip(end, final, strict=True)
        for got, want in pairs:
            np.testing.assert_allclose(got.data, want.data, rtol=1e-12, atol=1e-14)
        assert not np.allclose(layer(x[:, cut:])[0].data, second.data)  # the state was used

    def test_backwards_is_forwards_on_the_reversed_sequence(self, rng, form):
        both, one = form(3, 4, 1, True, rng=rng), form(3, 4, rng=rng)
        state = both.state_dict()
        one.load_state_dict({name: state[name + "_reverse"] for name in one.state_dict()})
        x = rng.standard_normal((2, 6, 3)).astype(np.float32)
        backwards = one(x[:, ::-1])[0].data[:, ::-1]
        np.testing.assert_allclose(both(x)[0].data[:, :, 4:], backwards, rtol=1e-6, atol=1e-7)

    def test_large_inputs_saturate_and_do_not_overflow(self, rng, form):
        layer = form(3, 4, rng=rng)
        with np.errstate(all="raise", under="ignore"):
            x = Tensor(np.full((1, 3, 3), 1e4, np.float32), requires_grad=True)
            out, _ = layer(x)
            out.backward(np.ones(out.shape))
        assert np.isfinite(out.data).all() and np.isfinite(x.grad).all()

    def test_dropout_between_layers_while_training_only(self, rng, form):
        layer = form(3, 4, 2, dropout=0.5, rng=rng)
        x = rng.standard_normal((2, 6, 3)).astype(np.float32)
        assert not np.array_equal(layer(x)[0].data, layer(x)[0].data)
        layer.eval()
        np.testing.assert_array_equal(layer(x)[0].data, layer(x)[0].data)
        single = form(3, 4, 1, dropout=0.5, rng=rng)
        np.testing.assert_array_equal(single(x)[0].data, single(x)[0].data)

    def test_errors(self, rng, form):
        layer = form(3, 4, 2, True, rng=rng)
        x = np.zeros((2, 5, 3), np.float32)
        for bad in (x[0], x[:, :, :2], x[:, :0]):
            with pytest.raises(ValueError, match=r"x: expected shape \(B, N, 3\) with N ≥ 1, got"):
                layer(bad)
        with pytest.raises(ValueError, match=r"state: expected \d of shape \(4, 2, 4\), got"):
            layer(x, np.zeros((2, 2, 4), np.float32))
        with pytest.raises(ValueError, match=r"state: expected \d of shape \(4, 2, 4\), got"):
            layer(x, (np.zeros((4, 2, 3), np.float32),) * 2)
        for lengths in ([5], [5, 6], [-1, 5], [2.0, 3.0]):
            with pytest.raises(ValueError, match=r"lengths: expected 2 integers in \[0, 5\], got"):
                layer(x, lengths=lengths)
        with pytest.raises(ValueError, match=r"dropout: expected a probability in \[0, 1\), got 1"):
            form(3, 4, 2, dropout=1, rng=rng)


def weights(rng, gates, D, H):
    G = gates * H
    return [0.7 * rng.standard_normal(shape) for shape in ((G, D), (G, H), (G,), (G,))]


@pytest.mark.parametrize("lengths", [None, [4, 1, 0]])
@pytest.mark.parametrize("B, N, D, H", [(3, 4, 2, 5), (3, 5, 3, 1), (3, 7, 1, 4)])
class TestNaive:
    def test_gru(self, rng, B, N, D, H, lengths):
        W_ih, W_hh, b_ih, b_hh = weights(rng, 3, D, H)
        x, h = rng.standard_normal((B, N, D)), rng.standard_normal((B, H))
        layer = nn.GRU(D, H, rng=rng).to(np.float64)
        layer.load_state_dict(dict(zip(layer.state_dict(), (W_ih, W_hh, b_ih, b_hh), strict=True)))
        states, last = layer(x, h[None], lengths)
        want, want_last = gru_naive(x, h, W_ih, W_hh, b_ih, b_hh, lengths)
        np.testing.assert_allclose(states.data, want, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(last.data[0], want_last, rtol=1e-12, atol=1e-14)
        assert want.std() > 0.1

    def test_lstm(self, rng, B, N, D, H, lengths):
        W_ih, W_hh, b_ih, b_hh = weights(rng, 4, D, H)
        x, h, c = (rng.standard_normal(s) for s in ((B, N, D), (B, H), (B, H)))
        layer = nn.LSTM(D, H, rng=rng).to(np.float64)
        layer.load_state_dict(dict(zip(layer.state_dict(), (W_ih, W_hh, b_ih, b_hh), strict=True)))
        states, (last_h, last_c) = layer(x, (h[None], c[None]), lengths)
        want, want_h, want_c = lstm_naive(x, h, c, W_ih, W_hh, b_ih, b_hh, lengths)
        for got, expected in ((states.data, want), (last_h.data[0], want_h), (last_c.data[0], want_c)):
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)
        assert want.std() > 0.02


KEEP = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0]], bool)[:, :, None]  # three positions of three samples


@pytest.mark.parametrize("keep", [None, KEEP])
class TestScan:
    def test_gru_to_second_order(self, rng, keep):
        args = [rng.standard_normal(s) for s in ((3, 3, 6), (3, 2), (6, 2), (6,))]
        check_grads(lambda *a: gru_scan(*a, keep=keep), *args, order=2, rng=rng)

    def test_lstm_to_second_order(self, rng, keep):
        args = [rng.standard_normal(s) for s in ((3, 3, 8), (3, 2), (3, 2), (8, 2), (8,))]
        check_grads(lambda *a: lstm_scan(*a, keep=keep), *args, order=2, rng=rng)

    @pytest.mark.parametrize("scan, gates, parts", [(gru_scan, 3, 1), (lstm_scan, 4, 2)])
    def test_both_backward_passes_agree(self, rng, keep, scan, gates, parts):
        """The one over saved gates, and the one that is recorded step by step."""
        shapes = [(3, 3, gates * 2), *[(3, 2)] * parts, (gates * 2, 2), (gates * 2,)]
        args = [Tensor(rng.standard_normal(s), requires_grad=True) for s in shapes]
        out = scan(*args, keep=keep)
        u = rng.standard_normal(out.shape)
        recorded = mn.grad(out, args, u, create_graph=True)
        saved = mn.grad(out, args, u)
        for a, b in zip(recorded, saved, strict=True):
            np.testing.assert_allclose(a.data, b.data, rtol=1e-10, atol=1e-12)
            assert np.abs(b.data).max() > 1e-3


class TestCells:
    @pytest.mark.parametrize("bias", [True, False])
    def test_gru_cell_is_pytorchs(self, rng, bias):
        follow(nn.GRUCell(3, 4, bias, rng=rng), torch.nn.GRUCell(3, 4, bias), rng, (5, 3), (5, 4))

    @pytest.mark.parametrize("bias", [True, False])
    def test_lstm_cell_is_pytorchs(self, rng, bias):
        mine, twin = nn.LSTMCell(3, 4, bias, rng=rng), torch.nn.LSTMCell(3, 4, bias)
        calls = {"call_ours": with_state(mine), "call_theirs": with_state(twin)}
        follow(mine, twin, rng, (5, 3), (5, 4), (5, 4), **calls)

    def test_without_a_state_they_begin_at_zero(self, rng):
        x = rng.standard_normal((5, 3))
        for mine, twin in ((nn.GRUCell(3, 4, rng=rng), torch.nn.GRUCell(3, 4)),
                           (nn.LSTMCell(3, 4, rng=rng), torch.nn.LSTMCell(3, 4))):
            pair(mine, twin)
            got, want = mine(x), twin(torch.from_numpy(x))
            if isinstance(got, tuple):
                got, want = got[1], want[1]
            np.testing.assert_allclose(got.data, want.detach().numpy(), rtol=1e-10, atol=1e-12)

    def test_steps_work_on_plain_arrays(self, rng):
        x, h, c = rng.standard_normal((1, 2)), rng.standard_normal((1, 3)), rng.standard_normal((1, 3))
        w = weights(rng, 3, 2, 3)
        np.testing.assert_allclose(gru_step(x, h, *w), gru_naive(x[:, None], h, *w)[1], rtol=1e-12)
        w = weights(rng, 4, 2, 3)
        np.testing.assert_allclose(lstm_step(x, h, c, *w)[1], lstm_naive(x[:, None], h, c, *w)[2], rtol=1e-12)


def test_what_they_show(rng):
    assert repr(nn.GRU(3, 4, 2, True, rng=rng)) == "GRU(3, 4, layers=2, bidirectional=True)"
    assert repr(nn.LSTM(3, 4, bias=False, rng=rng)) == "LSTM(3, 4, bias=False)"
    assert repr(nn.LSTMCell(3, 4, rng=rng)) == repr(torch.nn.LSTMCell(3, 4))
