"""A language model for hyperschedules: trained on all blocks in one pass, generating with a cache.

The network is a GPT whose mask is not causal but handed in: `hyperschedule_mask` of a move in generation,
`training_mask` in training, when the clean text and its noised copy run side by side (2N rows) and every
noised block sees the clean ones before it, as in its own move.

A settled row that only looks back is computed once; what is active is computed at every move and taken out of
the caches again. Fathi, Scholak and Noël 2025, arXiv 2504.06416.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minattn.attention import AppendCache, KVCache, causal
from minattn.attention.masks import MaskMod, whole
from minattn.attention.position import PositionEncoding
from minattn.autograd import cat, no_grad
from minattn.autograd.engine import Array, Operand, raw

from .config import Config
from .correction import ETA, correction_move, naive_correction_move
from .gpt import GPT
from .hybrid_noise import Noised, epsilon_hybrid_loss
from .hyperschedule import Hyperschedule, hyperschedule_mask, naive_hyperschedule_mask, training_mask

PAPERS = (196,)

__all__ = ["Folded", "HyperscheduleLM", "SettledCache", "Written", "block_loss", "block_times", "move_loss",
           "naive_scheduled_generate", "scheduled_generate"]


class SettledCache(AppendCache):
    """An `AppendCache` from which the last entries can be taken out again."""

    def keep(self, n: int) -> None:
        """Forget all but the first `n` positions."""
        if not 0 <= n <= self.length:
            raise ValueError(f"n: expected a number of positions in [0, {self.length}], got {n}")
        self.length = n


class Folded(PositionEncoding):
    """Another encoding, for rows of which two may stand at one position: row N + p stands where row p does.

    Parameters
    ----------
    inner : PositionEncoding
        `RoPE`, `ALiBi` or none.

    Attributes
    ----------
    N : int or None
        Where positions begin again; None if they do not.
    """

    def __init__(self, inner: PositionEncoding) -> None:
        self.inner, self.N = inner, None
        if inner.score_mod is not None:
            self.score_mod = self._score

    def rotate(self, x: Operand, positions: Array) -> Operand:
        """Queries or keys x turned as `inner` turns them at the folded positions."""
        return self.inner.rotate(x, self._place(positions))

    def _score(self, score: Operand, b: Array, h: Array, i: Array, j: Array) -> Operand:
        return self.inner.score_mod(score, b, h, self._place(i), self._place(j))

    def _place(self, positions: Array) -> Array:
        return positions if self.N is None else positions % self.N


class HyperscheduleLM(GPT):
    """A `GPT` that sees what its mask says, and predicts the token at each position, not the next.

    Parameters
    ----------
    config : Config
        ``vocab`` counts [MASK], whose id is the last, V; logits are of the V tokens.
    rng : numpy.random.Generator

    Examples
    --------
    >>> config = Config(vocab=66, context=64, layers=4, heads=4, d_model=128)
    >>> model = HyperscheduleLM(config, rng=np.random.default_rng(0))
    >>> model(np.full((2, 10), model.mask_id)).shape
    (2, 10, 65)
    """

    def __init__(self, config: Config, *, rng: np.random.Generator) -> None:
        if config.vocab < 2:
            raise ValueError(f"config: expected a vocab of at least one token and [MASK], got {config.vocab}")
        super().__init__(config, rng=rng)
        self.mask_id = config.vocab - 1
        for block in self.blocks:
            block.attn.position = Folded(block.attn.position)

    def hidden(self, ids: Array, *, mask_mod: MaskMod | None = None, caches: Sequence[KVCache] | None = None,
               pad: Array | None = None) -> Operand:
        """Residual stream (B, N, D) after the last block and norm; without a mask it is causal."""
        if pad is not None:
            raise ValueError("pad: expected none, a schedule's positions are those of the rows")
        x = self.embed(ids, caches[0].length if caches else 0)
        return self._stream(x, causal if mask_mod is None else mask_mod, caches)

    def _stream(self, x: Operand, mask_mod: MaskMod, caches: Sequence[KVCache] | None = None) -> Operand:
        for n, block in enumerate(self.blocks):
            x = block(x, mask_mod=mask_mod, cache=caches[n] if caches else None)
        return self.norm(x) if self.config.pre_norm else x

    def forward(self, ids: Array, *, mask_mod: MaskMod | None = None, caches: Sequence[KVCache] | None = None,
                pad: Array | None = None) -> Operand:
        """ids (B, N) in 0..V → logits (B, N, V).

        Parameters
        ----------
        ids : array of int (B, N)
        mask_mod : callable, optional
            All of the mask, such as `hyperschedule_mask`; causal by default.
        caches : sequence of KVCache, optional
            One for each block (see `new_caches`): `ids` then continue the sequence that the caches hold.
        pad : None
            Not for schedules.
        """
        return self.head(self.hidden(ids, mask_mod=mask_mod, caches=caches, pad=pad))[..., : self.mask_id]

    def pair(self, clean: Array, noised: Array, mask_mod: MaskMod) -> Operand:
        """Clean and noised ids (B, N) in one pass of 2N rows → logits (B, N, V) of the noised half.

        Row N + p stands at position p, as row p does; `mask_mod` is a `training_mask`.
        """
        if np.shape(clean) != np.shape(noised):
            raise ValueError(f"noised: expected shape {np.shape(clean)} as clean, got {np.shape(noised)}")
        N = np.shape(clean)[1]
        self._fold(N)
        try:
            x = self._stream(cat([self.embed(clean), self.embed(noised)], 1), mask_mod)
        finally:
            self._fold(None)
        return self.head(x[:, N:])[..., : self.mask_id]

    def _fold(self, N: int | None) -> None:
        for block in self.blocks:
            block.attn.position.N = N

    def new_caches(self) -> list[KVCache]:
        """An empty `SettledCache` for each block."""
        return [SettledCache() for _ in range(self.config.layers)]


# ---- losses


def block_times(rng: np.random.Generator, B: int, N: int, width: int, T: int) -> np.ndarray:
    """Levels t (B, N) for `block_loss`: in every block one of 1/T, 2/T, … 1, drawn uniformly."""
    blocks = rng.integers(1, whole("T", T) + 1, (B, -(-N // whole("width", width))))
    return np.repeat(blocks, width, 1)[:, :N] / T


def block_loss(model: HyperscheduleLM, ids: Array, noised: Noised, t: Array, width: int, *, epsilon: float,
               lam: float = 1.0, context: str = "causal", active: str = "full") -> Operand:
    """ε-hybrid loss of all blocks in one pass: the mean of `move_loss` over the blocks' tokens.

    Parameters
    ----------
    model : HyperscheduleLM
    ids : array of int (B, N)
    noised : Noised
        What `epsilon_hybrid_noise` made of ids at levels t.
    t : array (B, N)
        Noise levels, such as `block_times`.
    width : int
        Size of the blocks; it may differ from call to call, the network does not know it.
    epsilon, lam : float
        See `epsilon_hybrid_loss`.
    context, active : str
        See `training_mask`.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    mask = training_mask(np.shape(ids)[1], width, context=context, active=active)
    return epsilon_hybrid_loss(model.pair(ids, noised.ids, mask), ids, noised, t, epsilon, lam)


def move_loss(model: HyperscheduleLM, ids: Array, noised: Noised, t: Array, schedule: Hyperschedule,
              step: int, *, epsilon: float, lam: float = 1.0, context: str = "causal", active: str = "full",
              predict_next: bool = False) -> Operand:
    """ε-hybrid loss of the active tokens of one move, in a pass of its own: clean to a, noised to b.

    Parameters
    ----------
    model, ids, noised, t, epsilon, lam, context, active
        As for `block_loss`.
    schedule, step
        The move; only its division into settled, active and noise is used.
    predict_next : bool
        The shifted form: the token at a position is predicted by the row before it. Position 0 must be given
        (`Hyperschedule.after`). With an autoregressive schedule this is the loss of a GPT.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    a, b = schedule.span(step)
    if predict_next and a < 1:
        raise ValueError("predict_next: needs a settled row before the active ones; use schedule.after(1)")
    ids, t = np.asarray(ids), np.broadcast_to(t, np.shape(ids))
    seen = np.concatenate([ids[:, :a], noised.ids[:, a:b]], 1)
    logits = model(seen, mask_mod=hyperschedule_mask(schedule, step, context=context, active=active))
    part = Noised(*(field[:, a:b] for field in noised))
    return epsilon_hybrid_loss(logits[:, a - predict_next : b - predict_next], ids[:, a:b], part, t[:, a:b],
                               epsilon, lam)


# ---- generation


class Written(NamedTuple):
    """What was generated: ids (B, N), calls of the network, and rows that it computed in all of them."""

    ids: np.ndarray
    calls: int
    rows: int


def naive_scheduled_generate(model: HyperscheduleLM, schedule: Hyperschedule, *, rng: np.random.Generator,
                             batch: int = 1, prompt: Array | None = None, eta: float = ETA,
                             context: str = "causal", active: str = "full") -> Written:
    """All N rows in every move, noise included, under the mask that was asked pair by pair."""
    N, levels = schedule.N, schedule.levels.tolist()
    ids = np.full((batch, N), model.mask_id)
    for p in range(schedule.given):
        ids[:, p] = np.asarray(prompt)[:, p]
    for now, then in pairwise(levels):
        sees = naive_hyperschedule_mask(now, then, schedule.T, context=context, active=active,
                                        width=schedule.width, given=schedule.given)
        with no_grad():
            logits = raw(model(ids, mask_mod=lambda b, h, i, j, sees=sees: sees[i, j]))
        places = [p for p in range(N) if now[p] > 0 and then[p] < schedule.T]
        t, s = (np.array([[row[p] / schedule.T for p in places]] * batch) for row in (now, then))
        u = rng.random((batch, len(places)))
        seen = logits[:, places].astype(np.float64)
        ids[:, places] = naive_correction_move(ids[:, places], seen, t, s, eta, u)
    return Written(ids, schedule.steps, schedule.steps * N)


def scheduled_generate(model: HyperscheduleLM, schedule: Hyperschedule, *, rng: np.random.Generator,
                       batch: int = 1, prompt: Array | None = None, eta: float = ETA, context: str = "causal",
                       active: str = "full", cache: bool = True) -> Written:
    """Generate along a schedule, each move drawing the active tokens from `correction_kernel`.

    Parameters
    ----------
    model : HyperscheduleLM
    schedule : Hyperschedule
    rng : numpy.random.Generator
        Source of the draws, one number for each active token of a move.
    batch : int
        B, number of sequences; ignored if there is a prompt.
    prompt : array of int (B, given), optional
        Tokens at the given positions of the schedule.
    eta : float
        Probability, times s/t, with which a visible active token is drawn again. Settled ones stay.
    context, active : str
        See `hyperschedule_mask`.
    cache : bool
        Keep keys and values of rows that will not change (`Hyperschedule.cacheable`).

    Returns
    -------
    Written

    Raises
    ------
    ValueError
        If prompt and schedule do not fit.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    ids = _start(model, schedule, batch, prompt)
    caches = [SettledCache() for _ in model.blocks] if cache else None
    kept = rows = 0
    training = model.training
    model.eval()
    try:
        for step in range(schedule.steps):
            (a, b), (t, s) = schedule.span(step), schedule.times(step)
            mask = hyperschedule_mask(schedule, step, context=context, active=active)
            with no_grad():
                logits = model(ids[:, kept:b], mask_mod=mask, caches=caches)[:, a - kept :]
            rows += b - kept
            ids[:, a:b] = correction_move(rng, ids[:, a:b], logits, t[a:b], s[a:b], eta)
            if caches is not None:
                kept = schedule.cacheable(step, context)
                for c in caches:
                    c.keep(kept)
    finally:
        model.train(training)
    return Written(ids, schedule.steps, rows)


def _start(model: HyperscheduleLM, schedule: Hyperschedule, batch: int, prompt: Array | None) -> np.ndarray:
    """[MASK] everywhere but for the prompt."""
    if (prompt is None) != (schedule.given == 0):
        raise ValueError(f"prompt: expected tokens for the schedule's {schedule.given} given positions, "
                         f"got {'none' if prompt is None else np.shape(prompt)}")
    before = np.zeros((whole("batch", batch), 0), int) if prompt is None else np.asarray(prompt)
    if before.ndim != 2 or before.shape[1] != schedule.given:
        raise ValueError(f"prompt: expected shape (B, {schedule.given}), got {before.shape}")
    rest = np.full((len(before), schedule.N - schedule.given), model.mask_id)
    return np.concatenate([before, rest], 1)
