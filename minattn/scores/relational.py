"""Attention heads that hand over relations in place of features.

A standard ("sensory") head tells a query what it found. A relational head tells it how what it found relates
to itself, and which object that was, never what it looks like:

    α_i  = softmax_j (W_q x_i) · (W_k y_j) / √d                 which objects
    r_ij = ( (W_q^{rel,l} x_i) · (W_k^{rel,l} y_j) / √d_k )_l    how they relate, l = 1 … d_r
    o_i  = Σ_j α_ij (r_ij W_r + s_j W_s)                         and which they are: symbols s_j

Each relation is linear in y_j, so the sum over j can be taken first,

    Σ_j α_ij r_ij[l] = (W_q^{rel,l} x_i) · Σ_j α_ij (W_k^{rel,l} y_j) / √d_k

which is attention with values W_k^rel y_j, followed by one product with the query's side: no array of
relations (N, M, d_r) is formed, and the tiled kernel serves.

Altabaa and Lafferty, arXiv 2405.16727 (paper 5). That the sum can be taken first is our observation.
"""

# mypy: disable-error-code="misc"

from __future__ import annotations

import math

import numpy as np

from minattn import nn
from minattn.attention import MultiHeadAttention, attention
from minattn.attention.masks import MaskMod, whole
from minattn.attention.position import PositionEncoding
from minattn.autograd import cat, einsum, embedding, expand, permute, reshape
from minattn.autograd.engine import Array, Operand, raw

PAPERS = (5,)

__all__ = ["DualAttention", "RelationalAttention", "SymbolTable", "SymbolicAttention",
           "naive_relational_heads", "positional_symbols", "relations", "relative_symbols"]


# ---- the naive form


def naive_relational_heads(x: Array, y: Array, symbols: Array, weights: dict[str, Array], n_heads: int,
                           n_relations: int, mask_mod: MaskMod | None = None) -> np.ndarray:
    """Heads (H, N, d) of one sequence: every score, relation and symbol by itself.

    Parameters
    ----------
    x, y : (N, d_model) and (M, d_model)
    symbols : (M, d_model), or (N, M, d_model) if they depend on both positions
    weights : dict
        ``RelationalAttention.state_dict()``.
    """
    def rows(name: str, part: int, parts: int) -> Array:
        w = weights[f"{name}.weight"]
        return w[part * len(w) // parts : (part + 1) * len(w) // parts]

    N, M, d = len(x), len(y), len(weights["q_proj.weight"]) // n_heads
    k_rel = "k_rel" if "k_rel.weight" in weights else "q_rel"
    d_k = len(weights["q_rel.weight"]) // n_relations
    out = np.zeros((n_heads, N, d))
    for h in range(n_heads):
        w_q, w_k = rows("q_proj", h, n_heads), rows("k_proj", h, n_heads)
        w_r, w_s = rows("from_relations", h, n_heads), rows("from_symbols", h, n_heads)
        for i in range(N):
            seen = [j for j in range(M) if mask_mod is None or mask_mod(0, h, i, j)]
            scores = [float((w_q @ x[i]) @ (w_k @ y[j])) / math.sqrt(d) for j in seen]
            total = sum(math.exp(s) for s in scores)
            for j, s in zip(seen, scores, strict=True):
                r = np.array([(rows("q_rel", l, n_relations) @ x[i]) @ (rows(k_rel, l, n_relations) @ y[j])
                              for l in range(n_relations)]) / math.sqrt(d_k)
                symbol = symbols[j] if symbols.ndim == 2 else symbols[i, j]
                out[h, i] += math.exp(s) / total * (w_r @ r + w_s @ symbol)
    return out


# ---- symbols


def positional_symbols(table: Operand, M: int) -> Operand:
    """The symbol of object j is p_j: a table (L, d) → (M, d).

    Raises
    ------
    ValueError
        If the table has fewer than M rows.
    """
    if table.shape[0] < M:
        raise ValueError(f"table: expected at least {M} rows, one an object, got {table.shape[0]}")
    return table[:M]


def relative_symbols(table: Operand, N: int, M: int) -> Operand:
    """The symbol of object j for query i is p_{j − i}: a table (2L − 1, d) → (N, M, d).

    Row L − 1 is p_0; distances beyond the table get its ends, so it serves any length.

    Raises
    ------
    ValueError
        If the table has an even number of rows.
    """
    if table.shape[0] % 2 == 0:
        raise ValueError(f"table: expected an odd number of rows, 2L − 1, got {table.shape[0]}")
    most = table.shape[0] // 2
    return embedding(table, np.clip(np.arange(M) - np.arange(N)[:, None], -most, most) + most)


class SymbolicAttention(nn.Module):
    """Symbols looked up by features: s_j = softmax(y_j W Tᵀ / √d) S, with templates T and a library S.

    Parameters
    ----------
    d_model, n_symbols : int
        T and S have n_symbols rows.
    n_heads : int
        Each head looks up its own part of a symbol.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If n_heads does not divide d_model.

    References
    ----------
    Altabaa and Lafferty, arXiv 2405.16727 (paper 5).
    """

    def __init__(self, d_model: int, n_symbols: int, n_heads: int = 1, *, rng: np.random.Generator) -> None:
        if d_model % whole("n_heads", n_heads):
            raise ValueError(f"n_heads: expected a divisor of d_model={d_model}, got {n_heads}")
        whole("n_symbols", n_symbols)
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model, rng=rng)
        self.templates = nn.Parameter(rng.standard_normal((n_symbols, d_model)).astype(np.float32))
        self.library = nn.Parameter(rng.standard_normal((n_symbols, d_model)).astype(np.float32))

    def forward(self, y: Operand, N: int | None = None) -> Operand:
        """y (B, M, d_model) → symbols (B, M, d_model); the number of queries N does not matter."""
        B, M, D = y.shape
        q, k, v = (_heads(reshape(t, (1, -1, D)), self.n_heads)
                   for t in (self.query(y), self.templates, self.library))
        return reshape(_joined(attention(q, k, v)), (B, M, D))


class SymbolTable(nn.Module):
    """Learned symbols of positions, or of distances between positions.

    Parameters
    ----------
    d_model, length : int
        L, the longest sequence; of relative symbols, 2L − 1 distances are told apart.
    relative : bool
    rng : numpy.random.Generator
    """

    def __init__(self, d_model: int, length: int, relative: bool = False, *, rng: np.random.Generator
                 ) -> None:
        size = 2 * whole("length", length) - 1 if relative else whole("length", length)
        self.relative = relative
        self.table = nn.Parameter(rng.standard_normal((size, d_model)).astype(np.float32))

    def forward(self, y: Operand, N: int) -> Operand:
        """y (B, M, d_model) → (M, d_model), or (N, M, d_model) if relative; features of y are not read."""
        M = y.shape[1]
        return relative_symbols(self.table, N, M) if self.relative else positional_symbols(self.table, M)


# ---- the fast form


def relations(q: Operand, k: Operand, scale: float | None = None) -> Operand:
    """r_ij[l] = scale · q_i^l · k_j^l: (B, R, N, d_k) and (B, R, M, d_k) → (B, N, M, R); scale is 1/√d_k."""
    return permute(q @ k.mT, 0, 2, 3, 1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)


class RelationalAttention(nn.Module):
    """Heads whose values are relations to the query and symbols.

    Parameters
    ----------
    d_model, n_heads : int
    n_relations : int, optional
        d_r, shared by the heads; n_heads by default.
    d_head, d_relation : int, optional
        Features of a head, d_model / n_heads by default, and of a relation's two sides, d_model / d_r.
    symmetric : bool
        One projection for both sides, so that r(x, y) = r(y, x).
    scale : float, optional
        Of the relations, 1/√d_k by default.
    bias : bool
        Of the output projection.
    position : PositionEncoding, optional
        Of the scores, not of the relations.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If sizes do not fit, or symbols do not.

    References
    ----------
    Altabaa and Lafferty, arXiv 2405.16727 (paper 5).
    """

    def __init__(self, d_model: int, n_heads: int, n_relations: int | None = None, *,
                 d_head: int | None = None, d_relation: int | None = None, symmetric: bool = False,
                 scale: float | None = None, bias: bool = True, position: PositionEncoding | None = None,
                 rng: np.random.Generator) -> None:
        self.n_heads = whole("n_heads", n_heads)
        self.n_relations = n_heads if n_relations is None else whole("n_relations", n_relations)
        given = (("n_heads", d_head, n_heads), ("n_relations", d_relation, self.n_relations))
        for name, size, parts in given:
            if size is None and d_model % parts:
                raise ValueError(f"{name}: expected a divisor of d_model={d_model}, got {parts}")
        d_head = d_model // n_heads if d_head is None else d_head
        d_relation = d_model // self.n_relations if d_relation is None else d_relation
        self.scale = 1 / math.sqrt(d_relation) if scale is None else scale
        self.position = PositionEncoding() if position is None else position
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False, rng=rng)
        self.k_proj = nn.Linear(d_model, n_heads * d_head, bias=False, rng=rng)
        self.q_rel = nn.Linear(d_model, self.n_relations * d_relation, bias=False, rng=rng)
        if not symmetric:
            self.k_rel = nn.Linear(d_model, self.n_relations * d_relation, bias=False, rng=rng)
        self.symmetric = symmetric
        self.from_relations = nn.Linear(self.n_relations, n_heads * d_head, bias=False, rng=rng)
        self.from_symbols = nn.Linear(d_model, n_heads * d_head, bias=False, rng=rng)
        self.out_proj = nn.Linear(n_heads * d_head, d_model, bias=bias, rng=rng)

    def sides(self, x: Operand, y: Operand) -> tuple[Operand, Operand]:
        """What `relations` takes: x and y seen by each relation, (B, R, N, d_k) and (B, R, M, d_k)."""
        k_rel = self.q_rel if self.symmetric else self.k_rel
        return _heads(self.q_rel(x), self.n_relations), _heads(k_rel(y), self.n_relations)

    def heads(self, x: Operand, y: Operand, symbols: Operand, mask_mod: MaskMod | None = None, *,
              relative: bool = False) -> Operand:
        """Outputs of the heads (B, H, N, d) before W_O; see `forward`."""
        (B, N, D), M, H = x.shape, y.shape[1], self.n_heads
        shape = np.shape(raw(symbols))
        expected = ((N, M, D),) if relative else ((M, D), (B, M, D))
        if shape not in expected:
            raise ValueError(f"symbols: expected shape {' or '.join(map(str, expected))}, got {shape}")
        q, k = (self.position.rotate(_heads(f(t), H), np.arange(t.shape[1]))
                for f, t in ((self.q_proj, x), (self.k_proj, y)))
        q_rel, k_rel = self.sides(x, y)
        values = reshape(permute(k_rel, 0, 2, 1, 3), (B, 1, M, -1))  # the same for all heads
        values = expand(values, (B, H, M, values.shape[-1]))
        named = self.from_symbols(symbols)
        if not relative:
            named = _heads(named if len(shape) == 3 else reshape(named, (1, M, -1)), H)
            values = cat([values, expand(named, (B, *named.shape[1:]))], -1)
        found = attention(q, k, values, mask_mod=mask_mod, score_mod=self.position.score_mod,
                          return_weights=relative)
        found, weights = found if relative else (found, None)
        R, d_k = q_rel.shape[1], q_rel.shape[3]
        gathered = reshape(found[..., : R * d_k], (B, H, N, R, d_k))
        related = einsum("brnd,bhnrd->bhnr", q_rel, gathered) * self.scale
        w_r = reshape(self.from_relations.weight, (H, -1, R))
        out = einsum("bhnr,hdr->bhnd", related, w_r)
        if relative:
            return out + einsum("bhnm,nmhd->bhnd", weights, reshape(named, (N, M, H, -1)))
        return out + found[..., R * d_k :]

    def forward(self, x: Operand, y: Operand | None = None, *, symbols: Operand,
                mask_mod: MaskMod | None = None, relative: bool = False) -> Operand:
        """Output (B, N, d_model).

        Parameters
        ----------
        x : (B, N, d_model)
        y : (B, M, d_model), optional
            The objects; x by default.
        symbols : (M, d_model) or (B, M, d_model); if `relative`, (N, M, d_model)
            One for each object, or one for each query and object, the same in the whole batch.
        mask_mod : callable, optional
        relative : bool
        """
        heads = self.heads(x, x if y is None else y, symbols, mask_mod, relative=relative)
        return self.out_proj(_joined(heads))


class DualAttention(nn.Module):
    """Sensory and relational heads side by side, through one W_O.

    W_O on heads side by side is the sum of its two halves on either kind, so this is
    ``sensory(x) + relational(x)``: a `MultiHeadAttention` and a `RelationalAttention` with heads of one size.

    Parameters
    ----------
    d_model : int
    n_sensory, n_relational : int
        Heads of each kind; without relational ones this is `MultiHeadAttention`, without sensory ones an
        Abstractor's layer.
    symbols : Module, optional
        `SymbolicAttention` or `SymbolTable`; needed with relational heads.
    n_relations, d_relation, symmetric
        As in `RelationalAttention`.
    rng : numpy.random.Generator

    Raises
    ------
    ValueError
        If the number of heads does not divide d_model, or symbols are missing.

    References
    ----------
    Altabaa and Lafferty, arXiv 2405.16727 (paper 5).
    """

    def __init__(self, d_model: int, n_sensory: int, n_relational: int, *, symbols: nn.Module | None = None,
                 n_relations: int | None = None, d_relation: int | None = None, symmetric: bool = False,
                 rng: np.random.Generator) -> None:
        heads = n_sensory + n_relational
        if min(n_sensory, n_relational) < 0 or heads < 1 or d_model % heads:
            raise ValueError(f"n_sensory, n_relational: expected numbers ≥ 0 whose sum divides "
                             f"d_model={d_model}, got {n_sensory} and {n_relational}")
        if n_relational and symbols is None:
            raise ValueError("symbols: expected a module, relational heads need it, got None")
        self.sensory = self.relational = None
        if n_sensory:
            self.sensory = MultiHeadAttention(d_model, n_sensory, d_head=d_model // heads, rng=rng)
        if n_relational:
            self.symbols = symbols
            self.relational = RelationalAttention(
                d_model, n_relational, n_relations, d_head=d_model // heads, d_relation=d_relation,
                symmetric=symmetric, bias=not n_sensory, rng=rng)

    def forward(self, x: Operand, y: Operand | None = None, *, mask_mod: MaskMod | None = None,
                cache: None = None) -> Operand:
        """x (B, N, d_model), objects y (B, M, d_model) or x itself → (B, N, d_model); there is no cache."""
        if cache is not None:
            raise ValueError(f"cache: expected None, relational heads keep none, got {type(cache).__name__}")
        there, out = x if y is None else y, None
        if self.sensory is not None:
            out = self.sensory(x, y, mask_mod=mask_mod)
        if self.relational is not None:
            symbols = self.symbols(there, x.shape[1])
            found = self.relational(x, there, symbols=symbols, mask_mod=mask_mod,
                                    relative=getattr(self.symbols, "relative", False))
            out = found if out is None else out + found
        return out


def _heads(x: Operand, H: int) -> Operand:
    """(B, N, H·D) → (B, H, N, D)."""
    return permute(reshape(x, (*x.shape[:2], H, x.shape[2] // H)), 0, 2, 1, 3)


def _joined(heads: Operand) -> Operand:
    """(B, H, N, D) → (B, N, H·D)."""
    B, H, N, D = heads.shape
    return reshape(permute(heads, 0, 2, 1, 3), (B, N, H * D))
