"""Which layers a block reads that attends to several of them: distributions over depth, and what they tell.

For weights a_ilj of a query i on layer l at position j, p_i(l) = Σ_j a_ilj; see `layerwise` (paper 154).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["DepthReport"]

PAPERS = (154,)


@dataclass(frozen=True)
class DepthReport:
    """Which layers the last block reads: p_i(l) = Σ_j a_ilj for every head and position.

    Attributes
    ----------
    layers : tuple of int
        The S layers on offer; 0 is the embedding.
    p : (B, H, N, S)
        Depth distributions; each sums to 1.
    ids : (B, N)
        The tokens that asked.
    """

    layers: tuple[int, ...]
    p: np.ndarray
    ids: np.ndarray

    def mean(self) -> np.ndarray:
        """Mean distribution of each head, (H, S)."""
        return self.p.mean((0, 2))

    def entropy(self) -> np.ndarray:
        """Mean entropy −Σ_l p(l) ln p(l) of each head in nats, (H,): 0 for one layer, ln S for all alike."""
        logs = np.log(np.where(self.p > 0, self.p, 1))
        return -(self.p * logs).sum(-1).mean((0, 2))

    def by_position(self) -> np.ndarray:
        """Mean over heads, (B, N, S)."""
        return self.p.mean(1)

    def favourite(self) -> int:
        """Index, among `layers`, of the layer with the most mass."""
        return int(self.mean().mean(0).argmax())

    def spread(self) -> float:
        """Standard deviation over positions of the head-averaged mass on the favourite layer."""
        return float(self.by_position()[..., self.favourite()].std())

    def by_token(self, V: int) -> np.ndarray:
        """Mean over the positions of each token id, (V, S); NaN for a token that does not occur."""
        out = np.full((V, len(self.layers)), np.nan)
        for token in np.unique(self.ids):
            out[token] = self.by_position()[self.ids == token].mean(0)
        return out

    def explained(self) -> float:
        """Share of the variance of that mass that is explained by which token asks, from 0 to 1."""
        mass = self.by_position()[..., self.favourite()]
        token, inverse = np.unique(self.ids, return_inverse=True)
        counts = np.bincount(inverse.ravel(), minlength=len(token))
        means = np.bincount(inverse.ravel(), mass.ravel(), len(token)) / counts
        variance = mass.var()
        return float(counts @ (means - mass.mean()) ** 2 / mass.size / variance) if variance else 0.0
