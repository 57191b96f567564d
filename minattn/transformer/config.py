"""The shape of a transformer, as data."""

from __future__ import annotations

from dataclasses import dataclass

from minattn.attention.position import RoPEScaling


@dataclass(frozen=True)
class Config:
    """What distinguishes one transformer from another.

    Attributes
    ----------
    vocab : int
        V, number of tokens (for a ViT: of classes).
    context : int
        N, longest sequence that a learned position table serves.
    layers, heads, d_model : int
        Number of blocks, of attention heads, and size D of the residual stream.
    kv_heads : int, optional
        Number of key and value heads; fewer than `heads` is grouped-query attention.
    d_mlp : int, optional
        Hidden size of the feed-forward layer; by default 4 D (8/3 D for gated forms, with three matrices).
    norm : {"layer", "rms"}
    pre_norm : bool
        True: x + f(norm(x)), the GPT-2 order. False: norm(x + f(x)), the order of the 2017 paper.
    activation : str
        Of the feed-forward layer: "gelu", "gelu_tanh", "relu", "silu", or gated "swiglu", "geglu", "reglu".
    position : {"learned", "sinusoidal", "rope", "alibi", "none"}
    bias : bool
        Whether linear layers and layer norms have biases.
    dropout : float
    tied : bool
        Whether the output layer is the transposed token embedding.
    rope_base : float
        Base of the rotary angles; models for long texts raise it.
    rope_scaling : RoPEScaling, optional
        How the rotary angles are slowed down for longer texts.
    norm_eps : float
        ε of the normalisations.
    head_size : int, optional
        Features of a head where they are not d_model / heads.
    segments : int
        Kinds of text, each with a vector that is added to its tokens (BERT: 2); 0 for none.
    """

    vocab: int
    context: int
    layers: int
    heads: int
    d_model: int
    kv_heads: int | None = None
    d_mlp: int | None = None
    norm: str = "layer"
    pre_norm: bool = True
    activation: str = "gelu"
    position: str = "learned"
    bias: bool = True
    dropout: float = 0.0
    tied: bool = True
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    head_size: int | None = None
    rope_scaling: RoPEScaling | None = None
    segments: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab", "context", "layers", "heads", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.head_size is None and self.d_model % self.heads:
            raise ValueError(f"d_model: expected a multiple of heads={self.heads}, got {self.d_model}")
        if self.heads % self.n_kv_heads:
            raise ValueError(f"kv_heads: expected a divisor of heads={self.heads}, got {self.kv_heads}")
        if self.position == "rope" and self.d_head % 2:
            raise ValueError(f"d_model: rotary positions need an even number of features a head, "
                             f"got {self.d_head}")
        choices = {"norm": ("layer", "rms"), "position": ("learned", "sinusoidal", "rope", "alibi", "none"),
                   "activation": ("gelu", "gelu_tanh", "relu", "silu", "swiglu", "geglu", "reglu")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @property
    def n_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads if self.head_size is None else self.head_size

    @property
    def gated(self) -> bool:
        return self.activation.endswith("glu")

    @property
    def d_hidden(self) -> int:
        """Hidden size of the feed-forward layer."""
        if self.d_mlp is not None:
            return self.d_mlp
        return 8 * self.d_model // 3 if self.gated else 4 * self.d_model
