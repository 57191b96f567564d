"""Speculative decoding: a cheap model guesses several tokens, the expensive one checks them in one pass.

A token y guessed with law q is accepted with probability min(1, p(y) / q(y)), p being the law that the
target wants; else one is drawn from what q left out, r = max(p − q, 0) / Σ max(p − q, 0). What comes out has
the law p, whatever q is:

    q(y) min(1, p(y)/q(y)) + (1 − α) r(y) = min(p, q)(y) + max(p − q, 0)(y) = p(y),    α = Σ min(p, q)

since 1 − α = Σ max(p − q, 0). Of γ guesses the first rejection ends the round; a round in which all are
accepted gets one more token from the target's last row. If guesses are accepted independently, a pass of the
target gives (1 − α^{γ+1}) / (1 − α) tokens on average.

Leviathan et al. 2023 (arXiv 2211.17192), Chen et al. 2023 (arXiv 2302.01318); in paper 162 (Park et al. 2024,
arXiv 2407.09111).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minattn.attention import KVCache
from minattn.attention.masks import whole
from minattn.autograd import no_grad
from minattn.autograd.engine import Array, raw
from minattn.transformer import GPT

from .paging import rewind

PAPERS = (162,)

__all__ = ["Pass", "Round", "Speculated", "acceptance_rate", "naive_speculative_law", "residual_law",
           "speculative_decode", "speculative_law", "tokens_per_pass", "verify"]


# --- one token ----------------------------------------------------------------------------------------------

def naive_speculative_law(p: Sequence[float], q: Sequence[float]) -> list[float]:
    """The law of what comes out, summed over all V² cases: guess y, and what is drawn in its place, x."""
    law = [0.0] * len(p)
    rest = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
    for y in range(len(p)):
        if q[y] == 0:
            continue  # never guessed
        accepted = min(1.0, p[y] / q[y])
        law[y] += q[y] * accepted
        for x in range(len(p)):
            if accepted < 1:
                law[x] += q[y] * (1 - accepted) * rest[x] / sum(rest)
    return law


def residual_law(p: Array, q: Array) -> np.ndarray:
    """r = max(p − q, 0), normed: what to draw from after a rejection; p itself where p = q."""
    rest = np.maximum(p - q, 0)
    total = rest.sum()
    return rest / total if total > 0 else np.asarray(p)


def speculative_law(p: Array, q: Array) -> np.ndarray:
    """The law (V,) of a token guessed with law q (V,) and checked against p (V,): p, whatever q is.

    Parameters
    ----------
    p, q : (V,)
        Probabilities of the target and of the draft.

    Raises
    ------
    ValueError
        If they are no probabilities, or not of one shape.
    """
    p, q = _laws(p, q)
    return np.minimum(p, q) + (1 - acceptance_rate(p, q)) * residual_law(p, q)


def acceptance_rate(p: Array, q: Array) -> float:
    """α = Σ min(p, q), the probability that a guess is accepted: 1 less the total variation distance."""
    p, q = _laws(p, q)
    return float(np.minimum(p, q).sum())


def tokens_per_pass(alpha: float, lookahead: int) -> float:
    """Tokens that a pass of the target gives on average: 1 + α + … + α^γ.

    Raises
    ------
    ValueError
        If `alpha` is no probability, or `lookahead` below 0.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a probability in [0, 1], got {alpha}")
    return float(sum(alpha**i for i in range(whole("lookahead", lookahead, 0) + 1)))


def verify(p: Array, q: Array, token: int, rng: np.random.Generator | None) -> tuple[bool, int]:
    """Check a token that was drawn from q: (accepted, the token that comes out).

    Without `rng`, p and q must be certain of one token each; nothing is left to chance.
    """
    ratio = p[token] / q[token]
    if ratio >= 1 or (rng is not None and rng.random() < ratio):
        return True, token
    return False, _drawn(residual_law(p, q), rng)


def _drawn(law: Array, rng: np.random.Generator | None) -> int:
    return int(law.argmax()) if rng is None else int(rng.choice(len(law), p=law))


def _laws(p: Array, q: Array) -> tuple[np.ndarray, np.ndarray]:
    found = [np.asarray(x, np.float64) for x in (p, q)]
    for name, x in zip("pq", found, strict=True):
        if x.ndim != 1 or not x.size or not (x >= 0).all() or abs(x.sum() - 1) > 1e-9:
            raise ValueError(f"{name}: expected probabilities (V,) that sum to 1, got shape {x.shape} with "
                             f"sum {x.sum()}")
    if found[0].shape != found[1].shape:
        raise ValueError(f"q: expected {found[0].size} probabilities as in p, got {found[1].size}")
    return found[0], found[1]


# --- whole texts --------------------------------------------------------------------------------------------

class Round(NamedTuple):
    """How many tokens were guessed before one pass of the target, and how many of them were right."""

    guessed: int
    accepted: int


class Pass(NamedTuple):
    """What a model read: the length of the text then, how many of its tokens were new, rows of logits."""

    length: int
    new: int
    rows: int


class Speculated(NamedTuple):
    """A text, ids (N + new,), the rounds that it took, and all passes of both models."""

    ids: np.ndarray
    rounds: list[Round]
    target: list[Pass]
    draft: list[Pass]

    @property
    def acceptance(self) -> float:
        """Share of the guesses that were accepted; 0 of none."""
        guessed = sum(r.guessed for r in self.rounds)
        return sum(r.accepted for r in self.rounds) / guessed if guessed else 0.0


class _Reader:
    """A model and what it has read of one text, of which it can forget the end."""

    def __init__(self, model: GPT, caches: list[KVCache], temperature: float | None) -> None:
        self.model, self.caches, self.temperature = model, caches, temperature
        self.passes: list[Pass] = []

    def laws(self, ids: list[int], last: int) -> np.ndarray:
        """Next-token laws (last, V) after each of the last positions of the text."""
        unread = np.array([ids[self.caches[0].length :]])
        self.passes.append(Pass(len(ids), unread.size, last))
        with no_grad():
            hidden = self.model.hidden(unread, caches=self.caches)[:, -last:]
            logits = np.asarray(raw(self.model.head(hidden))[0], np.float64)
        if self.temperature is None:
            return (np.arange(logits.shape[1]) == logits.argmax(-1)[:, None]).astype(np.float64)
        law = np.exp((logits - logits.max(-1, keepdims=True)) / self.temperature)
        return law / law.sum(-1, keepdims=True)

    def keep(self, length: int) -> None:
        """Forget what was read beyond the first `length` tokens."""
        rewind(self.caches, min(length, self.caches[0].length))


def speculative_decode(target: GPT, draft: GPT, ids: Sequence[int], max_new: int, *, lookahead: int = 4,
                       rng: np.random.Generator | None = None, temperature: float = 1.0,
                       new_caches: Callable[[], list[KVCache]] | None = None) -> Speculated:
    """Continue one text by `max_new` tokens of the target's law, most of them guessed by the draft.

    Parameters
    ----------
    target, draft : GPT
        Of one vocabulary.
    ids : N ints
    max_new : int
    lookahead : int
        γ, guesses a round.
    rng : numpy.random.Generator, optional
        Sample with it; without one, take the target's most likely token each time.
    temperature : float
        Of both laws when sampling.
    new_caches : callable, optional
        Makes the caches of the target (append-only or paged); its own by default.

    Returns
    -------
    Speculated
        Without `rng`, the ids are those of the target's greedy generation, whatever the draft is.

    Raises
    ------
    ValueError
        If the vocabularies differ, there is no prompt, or a number is out of range.
    """
    if target.config.vocab != draft.config.vocab:
        raise ValueError(f"draft: expected {target.config.vocab} tokens as the target has, "
                         f"got {draft.config.vocab}")
    if np.ndim(ids) != 1 or not len(ids):
        raise ValueError(f"ids: expected one sequence of at least one integer, got shape {np.shape(ids)}")
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    heat = None if rng is None else temperature
    reader = _Reader(target, target.new_caches() if new_caches is None else new_caches(), heat)
    guesser = _Reader(draft, draft.new_caches(), heat)
    text, rounds = [int(i) for i in ids], []
    end, lookahead = len(text) + whole("max_new", max_new, 0), whole("lookahead", lookahead)
    while len(text) < end:
        text, done = _round(reader, guesser, text, min(lookahead, end - len(text) - 1), rng)
        rounds.append(done)
    return Speculated(np.array(text), rounds, reader.passes, guesser.passes)


def _round(target: _Reader, draft: _Reader, text: list[int], guesses: int, rng: np.random.Generator | None
           ) -> tuple[list[int], Round]:
    """The text with the guesses that stood, and one token more."""
    guessed, q = list(text), []
    for _ in range(guesses):
        q.append(draft.laws(guessed, 1)[0])
        guessed.append(_drawn(q[-1], rng))
    p = target.laws(guessed, guesses + 1)
    kept, right = list(text), 0
    for n in range(guesses):
        accepted, token = verify(p[n], q[n], guessed[len(text) + n], rng)
        kept.append(token)
        if not accepted:
            break
        right += 1
    else:
        kept.append(_drawn(p[guesses], rng))
    for reader in (target, draft):
        reader.keep(len(kept) - 1)  # the last token has been read by nobody
    return kept, Round(guesses, right)
