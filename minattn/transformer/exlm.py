"""ExLM: a masked language model in which every [MASK] becomes k states, and a path chooses who speaks.

    text       BOS           the     [MASK]        [MASK]        sat    EOS            one token i each
    states     (0,1) (0,2)   (1,0)   (2,1) (2,2)   (3,1) (3,2)   (4,0)  (5,1) (5,2)    k = 2: (token, state)

[MASK]s and both ends become k states (i, 1) … (i, k), every other token stays one state (i, 0). An ordinary
encoder reads all of them; rotary positions turn half of a head's features by i and half by the second index.
The masked words are then read off the expanded states through `minattn.transformer.state_graph`.

`repeated_mlm_batch` is the paper's tool to tell two harms of masking apart: that [MASK] is no word, and that
what stood there is lost.

Source: Zheng et al., "ExLM: Rethinking the Impact of [MASK] Tokens in Masked Language Models" (ICML 2025,
arXiv 2501.13397), and the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minattn import nn
from minattn.attention.masks import whole
from minattn.attention.position import PositionEncoding, RoPE
from minattn.autograd import Tensor, cat, getitem, linear, log_softmax, no_grad, permute, reshape
from minattn.autograd.engine import Array, Operand, raw
from minattn.kernels import gelu
from minattn.kernels.dag import checked_lengths

from .config import Config
from .embed import check_ids, init_gpt2
from .encoder import IGNORED, MaskedLM
from .state_graph import dag_alignment_loss, transition_matrix, viterbi

PAPERS = (180,)

__all__ = ["ExLM", "Expanded", "expand_states", "mask_always", "naive_expand", "naive_rope_2d",
           "repeated_mlm_batch", "rope_2d"]

# ---- naive


def naive_expand(expanded: np.ndarray, k: int) -> list[tuple[int, int]]:
    """The states (i, j) of one text, in order; `expanded` (N,) says which tokens become k states."""
    states = []
    for i, split in enumerate(expanded):
        states += [(i, j) for j in range(1, k + 1)] if split else [(i, 0)]
    return states


def naive_rope_2d(x: np.ndarray, token: np.ndarray, state: np.ndarray, base: float = 10000.0) -> np.ndarray:
    """`rope_2d` of x (N, D) with D a multiple of 4, feature pair by feature pair, as complex numbers."""
    N, D = x.shape
    half, quarter = D // 2, D // 4
    out = np.zeros((N, D))
    for n in range(N):
        for part, index in ((0, token[n]), (half, state[n])):
            for f in range(quarter):
                pair = complex(x[n, part + f], x[n, part + quarter + f])
                angle = index * base ** (-2 * f / half)
                pair *= complex(np.cos(angle), np.sin(angle))
                out[n, part + f], out[n, part + quarter + f] = pair.real, pair.imag
    return out


# ---- masking


def mask_always(rng: np.random.Generator, ids: Array, mask_id: int, p: float = 0.15,
                special: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Each token becomes [MASK] with probability p; unlike BERT's, none stays or becomes another word.

    Parameters
    ----------
    ids : array of int (B, N)
    special : tuple of int
        Ids that are never masked (BOS, EOS, padding).

    Returns
    -------
    (inputs, targets)
        `targets` hold the original id where a token was masked, −100 elsewhere.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p: expected a probability in [0, 1], got {p}")
    ids = check_ids(ids)
    chosen = (rng.random(ids.shape) < p) & ~np.isin(ids, special)
    return np.where(chosen, mask_id, ids), np.where(chosen, ids, IGNORED)


def repeated_mlm_batch(rng: np.random.Generator, ids: Array, mask_id: int, k: int, p: float
                       ) -> tuple[np.ndarray, np.ndarray]:
    """Every token k times in a row, each copy masked by itself with probability p.

    The share of [MASK] in the input is p whatever k is, but a token is lost only if all of its copies are
    masked, with probability pᵏ. So k moves one harm of masking and leaves the other where it is; (p, k) and
    (pᵏ, 1) lose the same share of tokens with different shares of [MASK].

    Parameters
    ----------
    ids : array of int (B, N)
    k : int
        Copies of each token.
    p : float
        Probability that a copy is masked.

    Returns
    -------
    (inputs, targets)
        Both (B, N·k), copies side by side; `targets` hold the original id where a copy was masked, −100
        elsewhere.

    References
    ----------
    Zheng et al., arXiv 2501.13397 ("repeated MLM").
    """
    return mask_always(rng, np.repeat(check_ids(ids), whole("k", k), 1), mask_id, p)


# ---- states


@dataclass(frozen=True)
class Expanded:
    """Texts as states: S states in the longest text, G of them from expanded tokens in the text with most.

    Attributes
    ----------
    token, state : array of int (B, S)
        First and second index of each state; 0 and 0 behind the end of a text.
    lengths : array of int (B,)
        States of each text.
    nodes : array of int (B, G)
        Where the expanded states stand, in order; 0 behind the last one.
    counts : array of int (B,)
        Expanded states of each text.
    """

    token: np.ndarray
    state: np.ndarray
    lengths: np.ndarray
    nodes: np.ndarray
    counts: np.ndarray


def expand_states(expanded: Array, k: int, lengths: Any = None) -> Expanded:
    """Give each marked token k states (i, 1) … (i, k) and every other token one state (i, 0).

    Parameters
    ----------
    expanded : array of bool (B, N)
        Which tokens to expand.
    k : int
        States of each of them.
    lengths : integers (B,), optional
        Tokens of each text; all by default.
    """
    expanded = np.asarray(raw(expanded))
    if expanded.ndim != 2 or expanded.dtype != bool:
        raise ValueError(f"expanded: expected booleans (B, N), got {expanded.dtype} {expanded.shape}")
    B, N = expanded.shape
    inside = np.arange(N) < checked_lengths("lengths", lengths, B, N)[:, None]
    times = np.where(expanded, whole("k", k), 1) * inside
    total = times.sum(1)
    begins = times.cumsum(1) - times  # where the states of each token begin
    place = np.arange(total.max())
    token = (place[:, None] >= begins[:, None]).sum(2) - 1  # tokens that begin there or before
    token = np.minimum(token, inside.sum(1)[:, None] - 1) * (place < total[:, None])
    of_split = np.take_along_axis(expanded, token, 1) & (place < total[:, None])
    state = of_split * (1 + place - np.take_along_axis(begins, token, 1))
    counts = of_split.sum(1)
    nodes = np.argsort(~of_split, 1, kind="stable")[:, :counts.max()]
    return Expanded(token, state, total, nodes * (np.arange(counts.max()) < counts[:, None]), counts)


def rope_2d(x: Operand, token: Array, state: Array, base: float = 10000.0) -> Operand:
    """Rotary positions with two indices: half of the features turns by one, the other half by the other.

    With θ_f = base^(−4f/D), the pair (f, f + D/4) of the first half turns by token · θ_f, that of the second
    half by state · θ_f. So the score of a query and a key depends on the differences of both indices.

    Parameters
    ----------
    x : (B, H, N, D)
        Queries or keys, D a multiple of 4.
    token, state : array of int
        The two indices of each position, (N,) or broadcasting to (B, H, N).

    Returns
    -------
    (B, H, N, D)

    References
    ----------
    Zheng et al., arXiv 2501.13397; with one index: Su et al., arXiv 2104.09864, as `RoPE`.
    """
    if x.shape[-1] % 4:
        raise ValueError(f"x: expected a multiple of 4 features, got shape {x.shape}")
    half = x.shape[-1] // 2
    turn = RoPE(half, base, pairing="half").rotate
    return cat([turn(x[..., :half], token), turn(x[..., half:], state)], -1)


class StatePositions(PositionEncoding):
    """`rope_2d` at the indices of the texts that the model is reading; it is told them before each pass."""

    def __init__(self) -> None:
        self.token = self.state = np.zeros((1, 1), int)

    def rotate(self, x: Operand, positions: Array) -> Operand:
        return rope_2d(x, self.token[:, None, positions], self.state[:, None, positions])


# ---- the model


class ExLM(nn.Module):
    """Masked language model with k states for each [MASK], trained on all alignments of words to states.

    Parameters
    ----------
    config : Config
        With ``position="rope"``, of which the two-dimensional form is used, and a multiple of 4 features a
        head. `context` is the largest number of states of a text; the transitions have `heads` chunks.
    k : int
        States of a [MASK], and of BOS and EOS.
    mask, bos, eos : int
        Ids of [MASK], of the first and of the last token of every text.
    rng : numpy.random.Generator

    Notes
    -----
    For the states u of expanded tokens, with h the encoder's output and e a learned embedding of a state's
    place: f_u = [h_u; e_u], and q = W_q f, k = W_k f, gate = W_g f make the `transition_matrix`. With k = 1
    there is one path, and m · loss is the cross-entropy of a masked language model minus Σ ln E_{u,u+1}.

    References
    ----------
    Zheng et al., arXiv 2501.13397.
    """

    def __init__(self, config: Config, k: int = 4, *, mask: int, bos: int, eos: int,
                 rng: np.random.Generator) -> None:
        if config.position != "rope":
            raise ValueError(f'config: expected position="rope", got {config.position!r}')
        if config.d_head % 4:
            raise ValueError(f"config: expected a multiple of 4 features a head, got {config.d_head}")
        ids = {"mask": mask, "bos": bos, "eos": eos}
        if len(set(ids.values())) < 3 or not all(0 <= i < config.vocab for i in ids.values()):
            raise ValueError(f"mask, bos, eos: expected three ids below {config.vocab}, got {ids}")
        D = config.d_model
        self.config, self.k = config, whole("k", k)
        self.mask, self.bos, self.eos = mask, bos, eos
        self.lm, self.places = MaskedLM(config, rng=rng), StatePositions()
        for block in self.lm.encoder.blocks:
            block.attn.position = self.places
        self.place = nn.Embedding(config.context, D, rng=rng)
        self.query, self.key = nn.Linear(2 * D, D, rng=rng), nn.Linear(2 * D, D, rng=rng)
        self.gate = nn.Linear(2 * D, config.heads, rng=rng)
        init_gpt2(self, config.layers, rng)

    def expand(self, ids: Array, lengths: Any = None) -> Expanded:
        """The states of texts (B, N), each of which begins with BOS and ends with EOS."""
        ids = check_ids(ids)
        count = checked_lengths("lengths", lengths, *ids.shape)
        if not ((ids[:, 0] == self.bos) & (ids[np.arange(len(ids)), count - 1] == self.eos)).all():
            raise ValueError(f"ids: expected every text to begin with {self.bos} and to end with {self.eos}")
        found = expand_states(np.isin(ids, (self.mask, self.bos, self.eos)), self.k, count)
        if found.token.shape[1] > self.config.context:
            raise ValueError(f"ids: expected at most {self.config.context} states, the context, "
                             f"got {found.token.shape[1]}")
        return found

    def hidden(self, ids: Array, at: Expanded) -> Operand:
        """Output of the encoder for all states, (B, S, D)."""
        self.places.token, self.places.state = at.token, at.state
        return self.lm.encoder(np.take_along_axis(np.asarray(ids), at.token, 1), at.lengths)

    def forward(self, ids: Array, lengths: Any = None) -> tuple[Operand, Operand, Expanded]:
        """What the expanded states of texts (B, N) say, and how they follow each other.

        Returns
        -------
        log_probs : (B, G, V)
            ln p(y | u) of every word at every expanded state.
        transitions : (B, G, G)
            ln E, see `transition_matrix`.
        at : Expanded
        """
        at = self.expand(ids, lengths)
        rows = np.arange(len(at.nodes))[:, None]
        h = getitem(self.hidden(ids, at), (rows, at.nodes))
        said = self.lm.norm(gelu(self.lm.dense(h)))  # the output layer of `MaskedLM`
        logits = linear(said, self.lm.encoder.embed.token.weight, self.lm.bias)
        f = cat([h, self.place(at.nodes)], -1)
        E = transition_matrix(self._chunks(self.query(f)), self._chunks(self.key(f)), self.gate(f), at.counts)
        return log_softmax(logits, -1), E, at

    def _chunks(self, x: Operand) -> Operand:
        """(B, G, D) → (B, C, G, D/C)."""
        B, G, D = x.shape
        C = self.config.heads
        return permute(reshape(x, (B, G, C, D // C)), 0, 2, 1, 3)

    def loss(self, ids: Array, targets: Array, lengths: Any = None) -> Tensor:
        """`dag_alignment_loss` of BOS, the masked words and EOS, for texts as `mask_always` makes them."""
        ids, targets = check_ids(ids), np.asarray(targets)
        count = checked_lengths("lengths", lengths, *ids.shape)
        inside = np.arange(ids.shape[1]) < count[:, None]
        if targets.shape != ids.shape or (((targets != IGNORED) != (ids == self.mask)) & inside).any():
            raise ValueError(f"targets: expected a word at every [MASK] of ids {ids.shape} and {IGNORED} "
                             f"elsewhere, got shape {targets.shape}")
        log_probs, E, at = self(ids, count)
        m = at.counts // self.k
        spoken = np.array(ids)
        spoken[ids == self.mask] = targets[ids == self.mask]
        at_split = np.take_along_axis(at.token, at.nodes[:, ::self.k], 1)  # the token of each k-th state
        return dag_alignment_loss(log_probs, spoken[np.arange(len(m))[:, None], at_split], E, m, at.counts)

    def fill(self, ids: Array, lengths: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Texts (B, N) with words for their [MASK]s: the best path, where each state says its best word.

        Returns
        -------
        ids : (B, N)
        paths : (B, M)
            The expanded state that spoke for BOS, for each [MASK] in order, and for EOS; −1 behind.
        """
        with no_grad():
            log_probs, E, at = (raw(x) if isinstance(x, Tensor) else x for x in self(ids, lengths))
        words = log_probs.copy()
        words[..., [self.mask, self.bos, self.eos]] = -np.inf
        m = at.counts // self.k
        e = np.repeat(words.max(-1)[:, None], m.max(), 1)
        e[:, 0] = log_probs[..., self.bos]
        e[np.arange(len(e)), m - 1] = log_probs[..., self.eos]
        paths, _ = viterbi(e, E, m, at.counts)
        out = np.array(ids)
        for b, path in enumerate(paths):
            gaps = np.flatnonzero(out[b] == self.mask)[:m[b] - 2]
            out[b, gaps] = words[b, path[1:m[b] - 1]].argmax(-1)
        return out, paths
