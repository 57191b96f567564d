"""Generation: a model as the ``step(ids) -> logits`` that `minattn.nn.decode` asks for, and its uses.

Each call gets the whole sequence so far; a step with caches gives the model only the tokens it has not seen.
`generate` continues a batch of sequences; `stream` one, giving each token and its text when it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from minattn.attention import KVCache
from minattn.attention.masks import whole
from minattn.autograd import no_grad
from minattn.autograd.engine import Array, Operand
from minattn.nn.decode import (
    beam_search,
    decode_steps,
    joined,
    most_likely,
    of_rows,
    penalized,
    sampler,
    stop_at,
    text_pieces,
    until_stop,
)

from .gpt import GPT
from .seq2seq import EncoderDecoder

Caches = bool | Callable[[], KVCache] | Sequence[KVCache]


class Step:
    """Next-token logits of a `GPT`.

    A sequence longer than a learned position table is cut to its last ``context`` tokens; the positions of
    all of them then change with every token, so from there on nothing can be cached.

    Parameters
    ----------
    model : GPT
    cache : bool, callable or sequence of KVCache
        True: the model's own caches. False: none, everything is computed anew for each token. A function
        that makes a cache, such as the class itself: one for each block. Caches that are given may hold the
        beginning of the sequence already.
    chunk : int, optional
        At most so many tokens at a time enter the model, so that a long prompt takes little memory.
    pad : array of int (B,), optional
        Row b of the prompts begins with pad[b] tokens of padding.
    """

    def __init__(self, model: GPT, cache: Caches = True, *, chunk: int | None = None,
                 pad: Array | None = None) -> None:
        self.model = model
        self.limit = model.config.context if model.config.position == "learned" else None
        self.caches = _caches(model, cache)
        self.chunk = None if chunk is None else whole("chunk", chunk)
        self.pad = None if pad is None or not np.any(pad) else np.asarray(pad)
        if chunk is not None and self.caches is None:
            raise ValueError("chunk: expected None without a cache, which alone joins the pieces")

    def __call__(self, ids: Array) -> Operand:
        """ids (B, N) → logits (B, V) of the token after the last."""
        pad = of_rows(self.pad, len(ids))
        if self.limit is not None and ids.shape[1] > self.limit:
            self.caches = None
            pad = None if pad is None else np.maximum(pad - (ids.shape[1] - self.limit), 0)
            ids = ids[:, -self.limit :]
        how: dict[str, Any] = {} if pad is None else {"pad": pad}
        if self.caches is None:
            return self.model.next_logits(ids, **how)
        held, N = self.caches[0].length, ids.shape[1]
        if held >= N:
            raise ValueError(f"ids: expected more than the {held} tokens that the caches hold, got {N}")
        while self.chunk is not None and N - held > self.chunk:
            self.model.hidden(ids[:, held : held + self.chunk], caches=self.caches, **how)
            held += self.chunk
        return self.model.next_logits(ids[:, held:], caches=self.caches, **how)

    def reorder(self, rows: Array) -> None:
        """Row r of the caches becomes what row rows[r] was."""
        for cache in self.caches or ():
            cache.reorder(rows)


def _caches(model: GPT, cache: Caches) -> list[KVCache] | None:
    """A cache for each block, as `Step` takes them."""
    if isinstance(cache, bool):
        return list(model.new_caches()) if cache else None
    caches = [cache() for _ in model.blocks] if callable(cache) else list(cache)
    if len(caches) != len(model.blocks) or not all(isinstance(c, KVCache) for c in caches):
        raise ValueError(f"cache: expected a KVCache for each of the {len(model.blocks)} blocks, or a "
                         f"function that makes one, got {caches!r}")
    return caches


class TranslationStep:
    """Next-token logits of an `EncoderDecoder` for given sources, which are encoded once.

    Parameters
    ----------
    model : EncoderDecoder
    source : array of int (B, M)
    lengths : array of int (B,), optional
        Length of each source; the rest is padding.
    cache : bool
        Whether keys and values of earlier target tokens are kept.
    """

    def __init__(self, model: EncoderDecoder, source: Array, lengths: Array | None = None,
                 cache: bool = True) -> None:
        with no_grad():
            self.memory = model.encode(source, lengths)
        self.model, self.lengths = model, lengths
        self.caches = model.new_caches() if cache else None

    def __call__(self, ids: Array) -> Operand:
        """Target ids (B, N), or (B·K, N) for K beams a source, → logits of the token after the last."""
        rows = np.arange(len(ids)) * len(self.memory) // len(ids)  # K beams in a row share a source
        lengths = None if self.lengths is None else np.asarray(self.lengths)[rows]
        if self.caches is not None:
            ids = ids[:, self.caches[0].length :]
        return self.model.decode(ids, self.memory[rows], lengths, self.caches)[:, -1]

    def reorder(self, rows: Array) -> None:
        """Row r of the caches becomes what row rows[r] was (beams never leave their source)."""
        for cache in self.caches or ():
            cache.reorder(rows)


def generate(model: GPT, ids: Array, max_new: int, *, rng: np.random.Generator | None = None,
             beams: int | None = None, length_penalty: float = 1.0, repetition_penalty: float = 1.0,
             eos: int | None = None, stop: str | Sequence[str] = (), tokenizer: Any = None,
             lengths: Array | None = None, cache: Caches = True, chunk: int | None = None,
             **filters: Any) -> Array:
    """Continue the sequences ids (B, N) by up to `max_new` tokens; returns (B, N + new).

    Parameters
    ----------
    rng : numpy.random.Generator, optional
        Sample from the model with it; without one, take the most likely token each time.
    beams : int, optional
        The best sequence of a beam search with so many, instead.
    length_penalty : float
        See `minattn.nn.beam_search`.
    repetition_penalty : float
        See `minattn.nn.penalize_repeats`; 1 changes nothing.
    eos : int, optional
        A sequence ends with this token; then it is filled up with it.
    stop : str or sequence of str
        A sequence also ends with the token that completes one of these strings.
    tokenizer : optional
        Decodes ids to find them; ``model.tokenizer`` by default.
    lengths : array of int (B,), optional
        Prompts of different lengths: row b is its last lengths[b] ids, what comes before is padding (see
        `Tokenizer.batch`), and its continuation is that of the prompt alone.
    cache, chunk
        See `Step`.
    **filters
        ``temperature``, ``top_k``, ``top_p`` and ``min_p`` of `minattn.nn.filter_logits`, for sampling.

    Raises
    ------
    ValueError
        If options contradict each other, or one is out of range.
    """
    ids = np.asarray(ids)
    step, choose = _decoder(model, ids, rng, repetition_penalty, lengths, cache, chunk, filters)
    ended = _criterion(model, stop, tokenizer, ids.shape[-1])
    with _evaluating(model):
        if beams is None:
            return joined(ids, decode_steps(step, ids, max_new, choose, eos=eos, stop=ended))
        if rng is not None or ended is not None:
            raise ValueError("beams: expected None with rng or stop; a beam search neither samples nor reads")
        return beam_search(step, ids, max_new, beams, eos=eos, length_penalty=length_penalty).ids[:, 0]


class Piece(NamedTuple):
    """A token that was generated, or None at the very end, and the text that it adds."""

    id: int | None
    text: str


def stream(model: GPT, ids: Sequence[int] | Array, max_new: int, *, rng: np.random.Generator | None = None,
           repetition_penalty: float = 1.0, eos: int | None = None, stop: str | Sequence[str] = (),
           tokenizer: Any = None, cache: Caches = True, chunk: int | None = None, **filters: Any
           ) -> Iterator[Piece]:
    """Continue one sequence ids (N,), giving each token as soon as it is there.

    The texts together are the continuation's, up to the first stop string and without `eos`. A piece may be
    empty: text that is not complete, or that may become a stop string, waits for the tokens after it.

    Takes the options of `generate` except beams and lengths.

    Examples
    --------
    >>> for piece in stream(model, model.tokenizer.encode("To be"), 20):
    ...     print(piece.text, end="", flush=True)
    """
    prompt = np.asarray(ids)
    if prompt.ndim != 1:
        raise ValueError(f"ids: expected one sequence of integers (N,), got shape {prompt.shape}")
    step, choose = _decoder(model, prompt[None], rng, repetition_penalty, None, cache, chunk, filters)
    steps = decode_steps(step, prompt[None], max_new, choose, eos=eos)
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    return _pieces(model, steps, _stops(stop, tokenizer), tokenizer, eos)


def _pieces(model: GPT, steps: Iterator[Array], stops: list[str], tokenizer: Any, eos: int | None
            ) -> Iterator[Piece]:
    """`stream`, once its arguments are known to be good."""
    taken: list[int] = []

    def spoken() -> Iterator[int]:
        for (token,) in steps:
            taken.append(int(token))
            if token == eos:
                return
            yield taken[-1]

    decode = (lambda held: "") if tokenizer is None else tokenizer.decode
    texts = until_stop(text_pieces(decode, spoken()), stops)
    while True:
        with _evaluating(model):
            text = next(texts, None)
        if text is not None or taken:
            yield Piece(taken.pop() if taken else None, text or "")
        if text is None:
            return


def _decoder(model: GPT, ids: Array, rng: np.random.Generator | None, repetition_penalty: float,
             lengths: Array | None, cache: Caches, chunk: int | None, filters: dict[str, Any]) -> tuple:
    """The step and the choice of a token that the options of `generate` describe."""
    if filters and rng is None:
        raise ValueError(f"rng: expected a generator to sample with {', '.join(filters)}, got None")
    pad = None if lengths is None else _padding(ids, lengths)
    step: Any = Step(model, cache, chunk=chunk, pad=pad)
    if repetition_penalty != 1:
        step = penalized(step, repetition_penalty, pad)
    return step, most_likely if rng is None else sampler(rng, **filters)


def _padding(ids: Array, lengths: Array) -> Array:
    """How many ids of each row are padding."""
    lengths, (B, N) = np.asarray(lengths), np.shape(ids)
    if lengths.shape != (B,) or lengths.dtype.kind not in "iu" or not ((lengths >= 1) & (lengths <= N)).all():
        raise ValueError(f"lengths: expected {B} integers from 1 to {N}, got {lengths}")
    return N - lengths


def _stops(stop: str | Sequence[str], tokenizer: Any) -> list[str]:
    """The stop strings as a list, if there is something to look for, and someone to look."""
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(stops) or (stops and tokenizer is None):
        raise ValueError(f"stop: expected strings that are not empty, and a tokenizer, got {stops} and "
                         f"{tokenizer}")
    return stops


def _criterion(model: GPT, stop: str | Sequence[str], tokenizer: Any, start: int) -> Any:
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    stops = _stops(stop, tokenizer)
    return stop_at(tokenizer.decode, stops, start) if stops else None


@contextmanager
def _evaluating(model: GPT) -> Iterator[None]:
    """Context in which the model is in evaluation mode; to say so to every module takes a while."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
