"""Feed-forward layers shared between layers, left out, or exchanged for one wide one [paper 79].

    FFN(x) = relu(x W₁ + b₁) W₂ + b₂,   W₁ (D, F), W₂ (F, D):   2 D F + F + D parameters

An encoder–decoder with N_e and N_d layers has N_e + N_d of them. A *sharing plan* says for each layer which
one it uses, or that it uses none; then the sublayer vanishes with its residual step and its norm. "One wide"
is a single one for all layers of the encoder and none in the decoder, with F′ = (N_e + N_d) F: as many
parameters as all of them had together, but for (N_e + N_d − 1) D biases.

Source: Pires, Lopes, Assogba, Setiawan, "One Wide Feedforward is All You Need", WMT 2023, arXiv 2309.01826.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minattn import nn
from minattn.autograd.engine import Operand

from .block import Block, make_mlp
from .config import Config
from .embed import init_gpt2
from .encoder import Encoder
from .seq2seq import EncoderDecoder

PAPERS = (79,)

__all__ = ["PLANS", "FFNSharing", "OneWideTransformer", "SharedBlock", "ffn_flops", "ffn_parameter_count",
           "naive_gradient", "naive_logits"]

State = Mapping[str, np.ndarray]

# ---- naive: every layer has its own arrays, even where they hold the same numbers


def _naive_norm(row: np.ndarray, state: State, name: str) -> np.ndarray:
    centred = row - sum(row) / len(row)
    deviation = np.sqrt(sum(centred * centred) / len(row) + 1e-5)
    return centred / deviation * state[f"{name}.weight"] + state[f"{name}.bias"]


def _naive_linear(row: np.ndarray, state: State, name: str) -> np.ndarray:
    return state[f"{name}.weight"] @ row + state[f"{name}.bias"]


def _naive_ffn(row: np.ndarray, state: State, name: str) -> np.ndarray:
    hidden = _naive_linear(row, state, f"{name}.up")
    return _naive_linear(np.where(hidden.real > 0, hidden, 0), state, f"{name}.down")


def _naive_attention(rows: np.ndarray, others: np.ndarray, state: State, name: str, heads: int, causal: bool
                     ) -> np.ndarray:
    """What each of `rows` gathers from `others`, one query and one head at a time."""
    q, k, v = (np.array([_naive_linear(row, state, f"{name}.{part}_proj") for row in given])
               for part, given in (("q", rows), ("k", others), ("v", others)))
    size, out = q.shape[1] // heads, []
    for i in range(len(rows)):
        gathered = []
        for h in range(heads):
            part, seen = slice(h * size, (h + 1) * size), i + 1 if causal else len(others)
            scores = np.array([sum(q[i, part] * k[j, part]) / np.sqrt(size) for j in range(seen)])
            weights = np.exp(scores - max(scores.real))
            gathered += list(sum(w * v[j, part] for j, w in enumerate(weights)) / sum(weights))
        out.append(_naive_linear(np.array(gathered), state, f"{name}.out_proj"))
    return np.array(out)


def _naive_layer(x: np.ndarray, memory: np.ndarray | None, state: State, name: str, heads: int, pre_norm: bool
                 ) -> np.ndarray:
    """One layer; without arrays for a feed-forward layer it ends after attention."""
    def add(x, norm, f):
        def normed(rows):
            return np.array([_naive_norm(row, state, f"{name}.{norm}") for row in rows])
        return x + f(normed(x)) if pre_norm else normed(x + f(x))

    x = add(x, "norm1", lambda h: _naive_attention(h, h, state, f"{name}.attn", heads, memory is not None))
    if memory is not None:
        x = add(x, "norm_cross", lambda h: _naive_attention(h, memory, state, f"{name}.cross", heads, False))
    if f"{name}.mlp.up.weight" in state:
        x = add(x, "norm2", lambda h: np.array([_naive_ffn(row, state, f"{name}.mlp") for row in h]))
    return x


def naive_logits(source: np.ndarray, ids: np.ndarray, state: State, layers: tuple[int, int], heads: int,
                 pre_norm: bool = True) -> np.ndarray:
    """Logits (N, V) for one sentence, layer by layer and row by row; nothing is shared between layers.

    Parameters
    ----------
    source, ids : arrays of int (M,) and (N,)
    state : mapping of name to array
        Weights under the names of ``OneWideTransformer.state_dict()``, which holds a *copy* of a shared layer
        for each of its users. A layer without ``….mlp.up.weight`` has no feed-forward layer. Learned
        positions, layer norms, ReLU, biases. Complex arrays are taken, for `naive_gradient`.
    layers : (int, int)
        Number of layers of the encoder and of the decoder.
    heads : int
    pre_norm : bool
        Whether the norm stands before a sublayer (paper 79 and GPT-2) or after the addition (2017).
    """
    def embedded(tokens, name):
        return np.array([state[f"{name}.token.weight"][t] + state[f"{name}.position.weight"][n]
                         for n, t in enumerate(tokens)])

    def normed(rows, name):
        return np.array([_naive_norm(row, state, name) for row in rows])

    memory = embedded(source, "encoder.embed")
    if not pre_norm:
        memory = normed(memory, "encoder.norm")
    for n in range(layers[0]):
        memory = _naive_layer(memory, None, state, f"encoder.blocks.{n}", heads, pre_norm)
    x = embedded(ids, "embed")
    if pre_norm:
        memory = normed(memory, "encoder.norm")
    for n in range(layers[1]):
        x = _naive_layer(x, memory, state, f"blocks.{n}", heads, pre_norm)
    return np.array([state["head.weight"] @ row for row in (normed(x, "norm") if pre_norm else x)])


def naive_gradient(name: str, cotangent: np.ndarray, source: np.ndarray, ids: np.ndarray, state: State,
                   layers: tuple[int, int], heads: int, pre_norm: bool = True) -> np.ndarray:
    """Gradient of Σ cotangent · `naive_logits` with respect to one array of `state`, entry by entry.

    Uses the complex step ∂f/∂w = Im f(w + iε)/ε, which loses no digits however small ε is.
    """
    step, gradient = 1e-30, np.zeros(state[name].shape)
    for index in np.ndindex(gradient.shape):
        moved = state[name].astype(complex)
        moved[index] += 1j * step
        logits = naive_logits(source, ids, {**state, name: moved}, layers, heads, pre_norm)
        gradient[index] = np.sum(cotangent * logits.imag) / step
    return gradient


# ---- plans

PLANS: dict[str, tuple[str, str]] = {
    "Baseline": ("own", "own"),
    "SharedEnc": ("shared", "own"),
    "SharedDec": ("own", "shared"),
    "SharedEncSharedDec": ("shared", "shared"),
    "SharedEncDec": ("joint", "joint"),
    "NoEnc": ("none", "own"),
    "NoDec": ("own", "none"),
    "NoEncNoDec": ("none", "none"),
    "SharedEncNoDec": ("shared", "none"),
    "OneWide": ("shared", "none"),
}
"""The plans of paper 79: what the encoder's layers use, and what the decoder's. Joint: one for both sides."""


@dataclass(frozen=True)
class FFNSharing:
    """Which feed-forward layer each layer of an encoder–decoder uses.

    Layers with the same number use the same feed-forward layer, a layer with None has none: there sublayer,
    residual step and norm vanish. Source: paper 79 (arXiv 2309.01826), section on sharing and dropping.

    Attributes
    ----------
    encoder, decoder : tuple of int or None
        A number for each layer, such as ``encoder=(0, 0), decoder=(None, None)``.
    widen : int
        Factor by which the hidden size F of every feed-forward layer is multiplied.

    Raises
    ------
    ValueError, TypeError
        For a side without layers, something other than numbers ≥ 0 and None, or ``widen < 1``.

    Examples
    --------
    >>> FFNSharing.named("SharedEncNoDec", 3)
    FFNSharing(encoder=(0, 0, 0), decoder=(None, None, None), widen=1)
    >>> FFNSharing.named("OneWide", 6).widen
    12
    """

    encoder: tuple[int | None, ...]
    decoder: tuple[int | None, ...]
    widen: int = 1

    def __post_init__(self) -> None:
        for side in ("encoder", "decoder"):
            uses = tuple(getattr(self, side))
            if not uses:
                raise ValueError(f"{side}: expected a number or None for each layer, got no layer")
            for use in uses:
                if use is not None and (isinstance(use, bool) or not isinstance(use, int)):
                    raise TypeError(f"{side}: expected integers and None, got {use!r}")
                if use is not None and use < 0:
                    raise ValueError(f"{side}: expected numbers of at least 0, got {use}")
            object.__setattr__(self, side, uses)
        if isinstance(self.widen, bool) or not isinstance(self.widen, int):
            raise TypeError(f"widen: expected an integer, got {self.widen!r}")
        if self.widen < 1:
            raise ValueError(f"widen: expected at least 1, got {self.widen}")

    @classmethod
    def named(cls, name: str, encoder_layers: int, decoder_layers: int | None = None, group: int | None = None
              ) -> FFNSharing:
        """A plan by its name in the paper.

        Parameters
        ----------
        name : str
            One of `PLANS`. "OneWide" is "SharedEncNoDec" made `wide`.
        encoder_layers, decoder_layers : int
            N_e and N_d; by default both sides have as many.
        group : int, optional
            Share only within groups of this many consecutive layers (the last may be smaller), instead of
            within a whole side or, for "SharedEncDec", within the whole model.
        """
        Ne, Nd = encoder_layers, encoder_layers if decoder_layers is None else decoder_layers
        if name not in PLANS:
            raise ValueError(f"name: expected one of {', '.join(PLANS)}, got {name!r}")
        if Ne < 1 or Nd < 1:
            raise ValueError(f"encoder_layers, decoder_layers: expected at least 1 each, got {Ne} and {Nd}")
        if group is not None and group < 1:
            raise ValueError(f"group: expected at least 1, got {group}")
        if group is not None and not {"shared", "joint"} & set(PLANS[name]):
            raise ValueError(f"group: expected None, since {name} shares nothing, got {group}")

        def uses(kind: str, layers: int, first: int) -> tuple[int | None, ...]:
            if kind == "none":
                return (None,) * layers
            size = 1 if kind == "own" else group or layers
            return tuple(first + n // size for n in range(layers))

        if "joint" in PLANS[name]:
            both = uses("joint", Ne + Nd, 0)
            return cls(both[:Ne], both[Ne:])
        of_encoder, of_decoder = PLANS[name]
        plan = cls(uses(of_encoder, Ne, 0), uses(of_decoder, Nd, Ne))  # the decoder's numbers follow
        return plan.wide() if name == "OneWide" else plan

    @property
    def ffns(self) -> list[int]:
        """The numbers of the feed-forward layers there are, in the order of their first use."""
        return list(dict.fromkeys(use for use in self.encoder + self.decoder if use is not None))

    def wide(self) -> FFNSharing:
        """The same plan with feed-forward layers so wide that together they have the baseline's hidden units.

        Raises
        ------
        ValueError
            If there is none to widen, or if their number does not divide that of the layers.
        """
        layers, ffns = len(self.encoder + self.decoder), len(self.ffns)
        if not ffns or layers % ffns:
            raise ValueError(f"wide: expected a number of feed-forward layers that divides {layers} layers, "
                             f"got {ffns}")
        return replace(self, widen=layers // ffns)


def ffn_parameter_count(config: Config, sharing: FFNSharing) -> int:
    """Entries of all distinct feed-forward layers, 2 D F + F + D each, without building a model.

    Parameters
    ----------
    config : Config
        With D = ``d_model`` and F = ``d_hidden``, which the plan's ``widen`` multiplies. A gated layer has
        3 D F + 2 F + D entries; without ``bias`` the terms F and D fall away.
    sharing : FFNSharing

    Returns
    -------
    int
        The sum of the sizes of these arrays in an `OneWideTransformer` of this plan, exactly [paper 79].
    """
    D, F = config.d_model, sharing.widen * config.d_hidden
    into = 2 if config.gated else 1  # matrices from D to F; one leads back
    each = (into + 1) * D * F + (into * F + D if config.bias else 0)
    return len(sharing.ffns) * each


def ffn_flops(config: Config, sharing: FFNSharing) -> dict[str, int]:
    """Operations of the feed-forward layers' matrix products for one token of the encoder, of the decoder.

    4 D F (gated: 6 D F) for each layer that uses one, an addition and a multiplication being two: sharing
    saves parameters and no operations, leaving out saves both [paper 79].

    Returns
    -------
    dict
        ``{"encoder": …, "decoder": …}``
    """
    each = 2 * (3 if config.gated else 2) * config.d_model * sharing.widen * config.d_hidden
    uses = {"encoder": sharing.encoder, "decoder": sharing.decoder}
    return {side: each * sum(use is not None for use in layers) for side, layers in uses.items()}


# ---- the model


class SharedBlock(Block):
    """A `Block` with its feed-forward layer handed to it, or None for none at all.

    Parameters
    ----------
    block : Block
        Whose attention, norms, dropout and hook points it takes over.
    ffn : Module or None
        Shared with whoever else holds it, so that its gradient sums over all of its uses.
    """

    def __init__(self, block: Block, ffn: nn.Module | None) -> None:
        vars(self).update(vars(block))
        self.mlp = ffn  # type: ignore[assignment]
        if ffn is None:
            self.norm2 = None  # type: ignore[assignment]

    def _add(self, x: Operand, norm: nn.Module | None, f: Any) -> Operand:
        return x if norm is None else super()._add(x, norm, f)


class OneWideTransformer(EncoderDecoder):
    """An `EncoderDecoder` whose feed-forward layers follow a sharing plan; by default one wide one.

        x ← x + FFN_{plan(layer)}(norm(x)),   or nothing where plan(layer) is None

    Both norm orders of `Config` work. From one seed all plans with as many layers begin with the same
    embeddings and attention weights, and a shared layer that is not widened begins as its first user's.
    Source: paper 79 (arXiv 2309.01826).

    Parameters
    ----------
    config : Config
        ``layers`` is the number N_d of the decoder; ``d_hidden`` is F before widening. The paper has
        ``activation="relu"``.
    source_vocab : int, optional
        As in `EncoderDecoder`.
    sharing : FFNSharing or str
        The plan, or its name for N_e = N_d = ``config.layers``.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If the plan's decoder has not ``config.layers`` layers, or no plan has that name.

    Examples
    --------
    >>> config = Config(vocab=17, context=8, layers=2, heads=1, d_model=32, activation="relu")
    >>> wide = OneWideTransformer(config, rng=np.random.default_rng(0))
    >>> wide.encoder.blocks[0].mlp is wide.encoder.blocks[1].mlp, wide.blocks[0].mlp
    (True, None)
    >>> wide.encoder.blocks[0].mlp.up.weight.shape
    (512, 32)
    """

    def __init__(self, config: Config, source_vocab: int | None = None, *,
                 sharing: FFNSharing | str = "OneWide", rng: np.random.Generator) -> None:
        if isinstance(sharing, str):
            sharing = FFNSharing.named(sharing, config.layers)
        if len(sharing.decoder) != config.layers:
            raise ValueError(f"sharing: expected a plan for config.layers={config.layers} layers of the "
                             f"decoder, got one for {len(sharing.decoder)}")
        super().__init__(config, source_vocab, rng=rng)
        if len(sharing.encoder) != config.layers:
            token = self.encoder.embed.token
            self.encoder = Encoder(replace(self.encoder.config, layers=len(sharing.encoder)), rng=rng)
            self.encoder.embed.token.weight = token.weight  # the decoder's, if the vocabulary is shared
        self.sharing = sharing
        ffns: dict[int, nn.Module] = {}
        if sharing.widen > 1:
            wide = replace(config, d_mlp=sharing.widen * config.d_hidden)
            for use in sharing.ffns:
                ffns[use] = make_mlp(wide, rng)
                init_gpt2(ffns[use], config.layers, rng)
        self.encoder.blocks = _shared(self.encoder.blocks, sharing.encoder, ffns)
        self.blocks = _shared(self.blocks, sharing.decoder, ffns)


def _shared(blocks: nn.ModuleList, uses: tuple[int | None, ...], ffns: dict[int, nn.Module]) -> nn.ModuleList:
    """The blocks with the feed-forward layers they use; one that nobody has used yet is its first user's."""
    return nn.ModuleList(SharedBlock(block, None if use is None else ffns.setdefault(use, block.mlp))
                         for block, use in zip(blocks, uses, strict=True))
