"""Which sequences share an iteration: batches that wait for their longest, or seats that are filled at once.

An iteration reads all weights and adds a token to each sequence that takes part. A static batch ends with its
longest sequence, and until then the others' seats stay empty. Continuous batching decides again at every
iteration: who is done leaves at once, who waits takes the seat.

    static      a ████████        continuous    a ████████
                b ██                            b ██c ███████
                c         ███████               d ████e ████
                d         ████

Requests then stand at different positions. All of them pass through a matrix together, so that it is read
once, and only attention looks at each one's own cache ("selective batching").

Yu et al. 2022 (Orca, OSDI); in paper 162 (Park et al. 2024, arXiv 2407.09111).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from minattn.attention import KVCache, MultiHeadAttention, attention
from minattn.attention.masks import whole
from minattn.autograd import no_grad
from minattn.autograd.engine import Array, Operand, raw
from minattn.transformer import GPT

PAPERS = (162,)

__all__ = ["ContinuousBatcher", "Iteration", "continuous_iterations", "padded_batch", "selective_step",
           "simulate_batching",
           "static_iterations"]


# --- iterations alone ---------------------------------------------------------------------------------------

def simulate_batching(lengths: Sequence[int], slots: int, continuous: bool) -> list[list[int]]:
    """Who takes part in each iteration, event by event: lists of request numbers.

    lengths[r] is the number of tokens that request r produces, one an iteration; all wait from the start.
    """
    waiting, left = deque(range(len(lengths))), list(lengths)
    seated: list[int] = []
    found: list[list[int]] = []
    while waiting or seated:
        if continuous or not seated:
            while waiting and len(seated) < slots:
                seated.append(waiting.popleft())
        working = [r for r in seated if left[r] > 0]
        found.append(working)
        for r in working:
            left[r] -= 1
        if continuous:
            seated = [r for r in seated if left[r] > 0]
        elif not any(left[r] for r in seated):
            seated = []
    return found


def static_iterations(lengths: Sequence[int], slots: int) -> int:
    """Σ over batches of their longest: iterations of batches of `slots` requests, in order.

    Raises
    ------
    ValueError
        If a length or `slots` is below 1.
    """
    lengths = _lengths(lengths, slots)
    return sum(max(lengths[i : i + slots]) for i in range(0, len(lengths), slots))


def continuous_iterations(lengths: Sequence[int], slots: int) -> int:
    """When the last request is done, if each takes the first of `slots` seats to be free.

    Raises
    ------
    ValueError
        If a length or `slots` is below 1.
    """
    busy = [0] * whole("slots", slots)
    for n in _lengths(lengths, slots):
        heapq.heapreplace(busy, busy[0] + n)
    return max(busy)


def _lengths(lengths: Sequence[int], slots: int) -> list[int]:
    whole("slots", slots)
    return [whole(f"lengths[{r}]", n) for r, n in enumerate(lengths)]


# --- with a model -------------------------------------------------------------------------------------------

def selective_step(model: GPT, tokens: Sequence[int], caches: Sequence[Sequence[KVCache]]) -> np.ndarray:
    """Logits (S, V) after one more token of each of S sequences that stand at positions of their own.

    Parameters
    ----------
    model : GPT
        Pre-norm, with rotary, learned, sinusoidal or no positions.
    tokens : S ints
    caches : for each sequence a KVCache for each block, which take over the tokens' keys and values.

    Raises
    ------
    ValueError
        If the model is of another kind, or a sequence lacks caches.
    """
    if not model.config.pre_norm or model.config.position == "alibi":
        raise ValueError("model: expected pre-norm blocks without a bias of positions, got pre_norm="
                         f"{model.config.pre_norm}, position={model.config.position!r}")
    if len(tokens) != len(caches) or any(len(c) != len(model.blocks) for c in caches):
        raise ValueError(f"caches: expected one for each of {len(model.blocks)} blocks and {len(tokens)} "
                         f"sequences, got {[len(c) for c in caches]}")
    with no_grad():
        x = model.embed(np.asarray(tokens)[:, None], np.array([c[0].length for c in caches]))
        for n, block in enumerate(model.blocks):
            x = x + _attended(block.attn, block.norm1(x), [c[n] for c in caches])
            x = x + block.mlp(block.norm2(x))
        return np.asarray(raw(model.head(model.norm(x)[:, -1])))


def _attended(attn: MultiHeadAttention, x: Operand, caches: Sequence[KVCache]) -> Operand:
    """Self-attention of x (S, 1, D): projections of all sequences at once, each with its own cache."""
    q, k, v = (raw(project(x)).reshape(len(caches), -1, 1, width) for project, width in _projections(attn))
    heads = []
    for s, cache in enumerate(caches):
        at, row = np.array([cache.length]), slice(s, s + 1)
        seen = cache.append(attn.position.rotate(k[row], at), v[row])
        heads.append(raw(attention(attn.position.rotate(q[row], at), seen.keys, seen.values)))
    return attn.out_proj(np.concatenate(heads).reshape(len(caches), 1, -1))


def _projections(attn: MultiHeadAttention) -> list[tuple[Any, int]]:
    """The three projections and the features of a head in each."""
    d, dv = attn.q_proj.weight.shape[0] // attn.n_heads, attn.v_proj.weight.shape[0] // attn.n_kv_heads
    return [(attn.q_proj, d), (attn.k_proj, d), (attn.v_proj, dv)]


class Iteration(NamedTuple):
    """What one iteration did, in lengths of the sequences: prompts read, and texts that got one more token.

    `seated` names the requests that took part.
    """

    prefilled: tuple[int, ...]
    decoded: tuple[int, ...]
    seated: tuple[int, ...]


@dataclass
class _Request:
    number: int
    ids: list[int]
    end: int
    caches: list[KVCache] = field(default_factory=list)

    def done(self, eos: int | None) -> bool:
        return len(self.ids) >= self.end or (eos is not None and self.ids[-1] == eos)


class ContinuousBatcher:
    """Greedy generation for many requests, which join and leave between any two iterations.

    Each continuation is that of its prompt alone: no padding, and a cache set of its own for each request.

    Parameters
    ----------
    model : GPT
        See `selective_step`.
    slots : int
        How many requests take part in an iteration at most.
    new_caches : callable, optional
        Makes the caches of a request; the model's own by default. They are reset when it leaves.
    eos : int, optional
        A request is done after this token, or after as many tokens as it asked for.

    Attributes
    ----------
    log : list of Iteration
        What has been done so far; its length is the number of iterations.
    peak : int
        The most bytes that the caches of all seated requests had at once.

    Examples
    --------
    >>> batcher = ContinuousBatcher(model, slots=8)
    >>> numbers = [batcher.submit(prompt, 40) for prompt in prompts]
    >>> texts = batcher.run()       # one array of ids for each request, prompt included

    Notes
    -----
    Paper 162. An iteration first reads the prompts of those that have just sat down, which gives each its
    first token, one prompt after another; then adds a token to each of the others in one pass.
    """

    def __init__(self, model: GPT, slots: int, *, new_caches: Callable[[], list[KVCache]] | None = None,
                 eos: int | None = None) -> None:
        self.model, self.slots, self.eos = model, whole("slots", slots), eos
        self.new_caches = model.new_caches if new_caches is None else new_caches
        self.waiting: deque[_Request] = deque()
        self.seated: list[_Request] = []
        self.finished: dict[int, np.ndarray] = {}
        self.log: list[Iteration] = []
        self.peak = 0

    def submit(self, ids: Sequence[int], max_new: int) -> int:
        """Queue a prompt for up to `max_new` tokens; returns the number of the request.

        Raises
        ------
        ValueError
            If the prompt is no sequence of at least one integer, or `max_new` is below 1.
        """
        prompt = np.asarray(ids)
        if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
            raise ValueError(f"ids: expected one sequence of at least one integer, got {prompt.dtype} of "
                             f"shape {prompt.shape}")
        number = len(self.waiting) + len(self.seated) + len(self.finished)
        self.waiting.append(_Request(number, prompt.tolist(), len(prompt) + whole("max_new", max_new)))
        return number

    def step(self) -> list[int]:
        """One iteration: a token for each seat. Returns the numbers of the requests that are done with it."""
        old: list[_Request] = list(self.seated)
        new: list[_Request] = []
        while self.waiting and len(old) + len(new) < self.slots:
            new.append(self.waiting.popleft())
        read = tuple(len(r.ids) for r in new)
        for request in new:
            request.caches = list(self.new_caches())
            with no_grad():
                logits = raw(self.model.next_logits(np.array([request.ids]), caches=request.caches))
            request.ids.append(int(logits[0].argmax()))
        if old:
            logits = selective_step(self.model, [r.ids[-1] for r in old], [r.caches for r in old])
            for request, row in zip(old, logits, strict=True):
                request.ids.append(int(row.argmax()))
        self.seated = old + new
        self.log.append(Iteration(read, tuple(len(r.ids) - 1 for r in old),
                                  tuple(r.number for r in self.seated)))
        self.peak = max(self.peak, self.memory)
        return self._retire()

    def _retire(self) -> list[int]:
        """Let those leave that are done; what they held is free at once."""
        leaving = [r for r in self.seated if r.done(self.eos)]
        self.seated = [r for r in self.seated if not r.done(self.eos)]
        for request in leaving:
            for cache in request.caches:
                cache.reset()
            self.finished[request.number] = np.array(request.ids)
        return [r.number for r in leaving]

    def run(self) -> list[np.ndarray]:
        """Iterate until nobody is left; ids of every request so far, prompts included, by number."""
        while self.waiting or self.seated:
            self.step()
        return [self.finished[n] for n in sorted(self.finished)]

    @property
    def memory(self) -> int:
        """Bytes of the caches of all that are seated."""
        return sum(cache.memory for request in self.seated for cache in request.caches)


def padded_batch(prompts: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Prompts as one array (B, longest), zeros before the shorter ones, and their lengths (B,)."""
    lengths = np.array([len(p) for p in prompts])
    ids = np.zeros((len(prompts), lengths.max()), np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[len(row) - len(prompt) :] = prompt
    return ids, lengths
