"""From next-token logits to sequences: greedy, sampling and beam search; and to text, while it is written.

All take ``step(ids) -> logits``: for sequences ids (B, N) of integers, the logits (B, V) of the token after
the last one. A model that keeps a cache may be behind `step`; if beam search is to use it, give `step` a
method ``reorder(rows)`` that makes row r of the cache what row ``rows[r]`` was. Beam search then asks for the
prompts once, before it makes K rows of each.

A sequence that has produced `eos`, or of which ``stop(ids)`` says so, is finished and filled up with `eos`
(0 if there is none); decoding stops when all are. ``stop`` gets prompts with their continuations so far, at
least one token, and returns B booleans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minattn.autograd import log_softmax, no_grad
from minattn.autograd.engine import Array, Operand, raw

__all__ = ["Beams", "beam_search", "decode_steps", "filter_logits", "greedy", "penalize_repeats", "penalized",
           "sample", "sampler", "stop_at", "text_pieces", "until_stop"]

Step = Callable[[Array], Operand]
Stop = Callable[[Array], Array]
CUT = "\ufffd"
"""What a decoded text ends with while its last character is not complete."""


def _prompt(ids: Any, max_new: int) -> Array:
    ids = np.asarray(raw(ids))
    if ids.ndim != 2 or 0 in ids.shape or ids.dtype.kind not in "iu":
        raise ValueError(f"ids: expected integers (B, N) with B, N ≥ 1, got {ids.dtype} of shape {ids.shape}")
    if max_new < 0:
        raise ValueError(f"max_new: expected a number of tokens of at least 0, got {max_new}")
    return ids.astype(np.int64)


def _logits(step: Step, ids: Array, eos: int | None) -> Array:
    """The logits that `step` gives, in float64 on the CPU, found fit for decoding."""
    with no_grad():
        logits = raw(step(ids))
    logits = np.asarray(logits.get() if hasattr(logits, "get") else logits, dtype=np.float64)
    if logits.ndim != 2 or len(logits) != len(ids):
        raise ValueError(f"step: expected logits ({len(ids)}, V) for ids {ids.shape}, got {logits.shape}")
    if not np.isfinite(logits.max(-1)).all():  # a maximum of NaN is NaN
        raise ValueError("step: the logits contain NaN or +∞, or leave no token possible")
    if eos is not None and not 0 <= eos < logits.shape[1]:
        raise ValueError(f"eos: expected a token in [0, {logits.shape[1]}), got {eos}")
    return logits


def most_likely(logits: Array) -> Array:
    """The token of the largest logit in each row."""
    return logits.argmax(-1)


def decode_steps(step: Step, ids: Array, max_new: int, choose: Callable[[Array], Array] = most_likely, *,
                 eos: int | None = None, stop: Stop | None = None) -> Iterator[Array]:
    """The tokens (B,) that come next, one step at a time, until there are `max_new` or all are finished.

    Parameters
    ----------
    step : callable
    ids : array of int (B, N)
    max_new : int
    choose : callable
        Picks tokens (B,) from logits (B, V); `most_likely`, or what `sampler` returns.
    eos : int, optional
    stop : callable, optional
    """
    return _steps(step, _prompt(ids, max_new), max_new, choose, eos, stop)


def _steps(step: Step, ids: Array, max_new: int, choose: Callable[[Array], Array], eos: int | None,
           stop: Stop | None) -> Iterator[Array]:
    """`decode_steps`, which checks its prompt when it is called, not when its first token is asked for."""
    finished = np.zeros(len(ids), bool)
    for _ in range(max_new):
        token = choose(_logits(step, ids, eos))
        token = np.where(finished, 0 if eos is None else eos, token)
        ids = np.concatenate([ids, token[:, None]], 1)
        if eos is not None:
            finished |= token == eos
        if stop is not None:
            finished |= stop(ids)
        yield token
        if finished.all():
            break


def joined(ids: Array, tokens: Iterator[Array]) -> Array:
    """Prompts (B, N) and all that comes after them."""
    return np.stack([*np.asarray(raw(ids), np.int64).T, *tokens], 1)


def greedy(step: Step, ids: Array, max_new: int, *, eos: int | None = None, stop: Stop | None = None
           ) -> Array:
    """Append the most likely token, `max_new` times; returns prompt and continuation (B, N + new)."""
    return joined(ids, decode_steps(step, ids, max_new, eos=eos, stop=stop))


def filter_logits(logits: Array, *, temperature: float = 1.0, top_k: int | None = None,
                  top_p: float | None = None, min_p: float | None = None) -> Array:
    """Logits (…, V) divided by the temperature, with −∞ for tokens that are not to be sampled.

    Parameters
    ----------
    temperature : float
        Above 0; below 1 sharpens the distribution, above 1 flattens it.
    top_k : int, optional
        Keep the k most likely tokens (and those as likely as the k-th).
    top_p : float, optional
        Keep the smallest set of most likely tokens whose probabilities sum to at least p: a token stays if
        the more likely ones sum to less than p.
    min_p : float, optional
        Keep tokens at least p times as likely as the most likely one.

    The filters apply one after the other, each to what the one before left, in this order.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: expected a number above 0, got {temperature} (at 0: greedy)")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    for name, p in (("top_p", top_p), ("min_p", min_p)):
        if p is not None and not 0 < p <= 1:
            raise ValueError(f"{name}: expected a number in (0, 1], got {p}")
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = np.sort(logits, -1)[..., -top_k, None]
        logits = np.where(logits >= least, logits, -np.inf)
    if top_p is not None:
        order = np.argsort(-logits, -1, kind="stable")
        probs = np.exp(log_softmax(np.take_along_axis(logits, order, -1), -1))
        kept = np.empty(logits.shape, bool)
        np.put_along_axis(kept, order, np.cumsum(probs, -1) - probs < top_p, -1)
        logits = np.where(kept, logits, -np.inf)
    if min_p is not None:
        least = logits.max(-1, keepdims=True) + np.log(min_p)
        logits = np.where(logits >= least, logits, -np.inf)
    return logits


def _draw(logits: Array, rng: np.random.Generator) -> Array:
    """One token of each row, token c with probability softmax(logits)_c: where a uniform number falls."""
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    total = np.cumsum(weight, -1)
    mark = rng.random((len(logits), 1)) * total[:, -1:]
    token = (total <= mark).sum(-1)  # the first whose running total passes the mark, so never one of weight 0
    last = logits.shape[-1] - 1 - (weight[:, ::-1] > 0).argmax(-1)
    return np.minimum(token, last)  # in case rounding puts the mark on the total itself


def sampler(rng: np.random.Generator, **filters: Any) -> Callable[[Array], Array]:
    """A function that draws one token of each row from softmax(logits), filtered as in `filter_logits`."""
    return lambda logits: _draw(filter_logits(logits, **filters), rng)


def sample(step: Step, ids: Array, max_new: int, *, rng: np.random.Generator, eos: int | None = None,
           stop: Stop | None = None, **filters: Any) -> Array:
    """Append tokens drawn from softmax(logits), filtered as in `filter_logits`; returns (B, N + new)."""
    return joined(ids, decode_steps(step, ids, max_new, sampler(rng, **filters), eos=eos, stop=stop))


def penalize_repeats(logits: Array, ids: Array, penalty: float, pad: Array | None = None) -> Array:
    """Logits (B, V), those of tokens in ids (B, N) divided by `penalty` if positive, times it if negative.

    Above 1 it makes what has been said less likely to be said again. The first pad[b] ids do not count.

    References
    ----------
    Keskar et al. 2019, arXiv 1909.05858, section 4.1; the sign rule is that of Hugging Face's transformers.
    """
    counts = np.ones(ids.shape, bool) if pad is None else np.arange(ids.shape[1]) >= np.asarray(pad)[:, None]
    seen = np.zeros(logits.shape, bool)
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
    seen[rows[counts], ids[counts]] = True
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def penalized(step: Step, penalty: float, pad: Array | None = None) -> Step:
    """`step` with `penalize_repeats` on its logits."""
    if not 0 < penalty < np.inf:
        raise ValueError(f"repetition_penalty: expected a number above 0 (1: none), got {penalty}")

    class Penalized:
        def __call__(self, ids: Array) -> Array:
            logits = np.asarray(raw(step(ids)), np.float64)
            return penalize_repeats(logits, ids, penalty, of_rows(pad, len(ids)))

        if hasattr(step, "reorder"):
            reorder = staticmethod(step.reorder)

    return Penalized()


def of_rows(values: Array | None, rows: int) -> Array | None:
    """What belongs to each prompt, for the rows that beam search makes of them: each entry K times."""
    return None if values is None else np.repeat(values, rows // len(values), axis=0)


class Beams(NamedTuple):
    """The best sequences found for each prompt, best first.

    Attributes
    ----------
    ids : array (B, K, N + new)
        Prompts and continuations, filled up with `eos` (or 0 if there is none).
    scores : array (B, K)
        ln-probability of the continuation over its length to the power of the length penalty; −∞ where fewer
        than K sequences are possible.
    lengths : array (B, K)
        Tokens of the continuation, `eos` included.
    """

    ids: Array
    scores: Array
    lengths: Array


def _best(scores: Array, k: int) -> Array:
    """Indices of the k largest scores in each row, largest first, the earlier of equals first."""
    return np.argsort(-scores, -1, kind="stable")[:, :k]


def _keep_best(done: Beams, new: Beams) -> Beams:
    """The K best of two sets of finished sequences."""
    K = done.scores.shape[1]
    width = max(done.ids.shape[2], new.ids.shape[2])
    parts = []
    for a, b in zip(done, new, strict=True):
        if a.ndim == 3:
            a, b = (np.pad(x, ((0, 0), (0, 0), (0, width - x.shape[2]))) for x in (a, b))
        parts.append(np.concatenate([a, b], 1))
    order = _best(parts[1], K)
    rows = np.arange(len(order))[:, None]
    return Beams(*(part[rows, order] for part in parts))


def _widen(ids: Array, scores: Array, K: int) -> tuple[Array, Array, Array]:
    """The K best one-token continuations of open sequences (B, K, N), scored (B, K, V), and their parents."""
    B, _, V = scores.shape
    rows, flat = np.arange(B)[:, None], scores.reshape(B, -1)
    chosen = _best(flat, K)
    parent, token = chosen // V, chosen % V
    return np.concatenate([ids[rows, parent], token[..., None]], 2), flat[rows, chosen], parent


def beam_search(step: Step, ids: Array, max_new: int, beams: int, *, eos: int | None = None,
                length_penalty: float = 1.0) -> Beams:
    """The `beams` best continuations that are found by keeping so many open ones at each length.

    The score of a continuation of n tokens is (Σ ln p) / n^length_penalty; it ends with `eos` or after
    `max_new` tokens. With 0 the most likely continuation wins, with 1 the one most likely per token. With at
    least V^max_new beams nothing is ever dropped, and the result is the exact optimum.

    Every ending of an open sequence competes for a place among the finished ones. Open sequences, all of one
    length, are ranked by ln-probability. The search stops once no open sequence can enter the finished ones.
    """
    ids = _prompt(ids, max_new)
    if max_new < 1:
        raise ValueError(f"max_new: expected at least 1, got {max_new}")
    if beams < 1:
        raise ValueError(f"beams: expected at least 1, got {beams}")
    if not length_penalty >= 0:
        raise ValueError(f"length_penalty: expected a number of at least 0, got {length_penalty}")
    (B, N), K = ids.shape, beams
    ids = np.repeat(ids[:, None], K, 1)
    scores = np.full((B, K), -np.inf)
    done = Beams(ids, scores, np.zeros((B, K), np.int64))  # K places that anything finished goes before
    scores = np.where(np.arange(K) == 0, 0.0, scores)  # all beams start as the same sequence: only one counts
    cached = hasattr(step, "reorder")
    for n in range(1, max_new + 1):
        rows = ids[:, 0] if cached and n == 1 else ids.reshape(B * K, -1)
        logp = log_softmax(_logits(step, rows, eos), -1)
        wider = scores[..., None] + logp.reshape(B, -1, logp.shape[-1])
        if eos is not None:
            ended = np.concatenate([ids, np.full((B, K, 1), eos)], 2)
            done = _keep_best(done, Beams(ended, wider[..., eos] / n**length_penalty, np.full((B, K), n)))
            wider[..., eos] = -np.inf
        ids, scores, parent = _widen(ids, wider, K)
        if cached:
            parent = np.arange(B)[:, None] * (len(rows) // B) + (parent if n > 1 else 0 * parent)
            step.reorder(parent.reshape(-1))  # type: ignore[attr-defined]
        if (scores[:, 0] / max_new**length_penalty <= done.scores[:, -1]).all():
            break  # ln-probabilities only fall: at no length would an open sequence enter
    else:
        done = _keep_best(done, Beams(ids, scores / max_new**length_penalty, np.full((B, K), max_new)))
    kept = np.arange(done.ids.shape[2]) < N + done.lengths[..., None]
    return done._replace(ids=np.where(kept, done.ids, 0 if eos is None else eos))


# ---- text


def text_pieces(decode: Callable[[list[int]], str], ids: Iterable[int]) -> Iterator[str]:
    """The text that each id adds, so that together they are ``decode(ids)``.

    A token that ends in the middle of a character adds nothing, and the one that completes it adds all of it.
    What is left at the end comes as one more piece.

    Parameters
    ----------
    decode : callable
        Text of a list of ids, in which what is not complete is U+FFFD.
    ids : iterable of int
    """
    held: list[int] = []
    for i in ids:
        held.append(int(i))
        text = decode(held)
        if text.endswith(CUT):
            yield ""
        else:
            held = []
            yield text
    if held:
        yield decode(held)


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The same text, up to the first of the stop strings; none of them, nor a beginning of one, is let out.

    One piece comes out for each that goes in, until a stop string is complete, and at the end what was kept
    back, if it is not empty.
    """
    held = ""
    for piece in pieces:
        held += piece
        found = [held.index(s) for s in stops if s in held]
        if found:
            yield held[: min(found)]
            return
        keep = max((n for s in stops for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    if held:
        yield held


def stop_at(decode: Callable[[Array], str], stops: Sequence[str], start: int) -> Stop:
    """A function of ids (B, N): in which rows the text from token `start` on holds one of the stop strings.

    It looks at the end alone, as it is asked after every token. No token may be without text.
    """
    longest = max(len(s.encode()) for s in stops)

    def stop(ids: Array) -> Array:
        texts = [decode(row) for row in ids[:, max(start, ids.shape[1] - longest) :]]
        return np.array([any(s in text for s in stops) for text in texts])

    return stop
