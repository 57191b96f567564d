"""ViT: an image is a sequence of patches."""

from __future__ import annotations

import numpy as np

from minattn import nn
from minattn.autograd import Tensor, cat, expand, namespace, permute, reshape
from minattn.autograd.engine import Operand
from minattn.kernels import cross_entropy

from .block import Block, make_norm
from .config import Config
from .embed import init_gpt2


def patches(images: Operand, size: int) -> Operand:
    """Images (B, C, H, W) as rows of patches, (B, H·W/size², C·size²), in reading order."""
    if images.ndim != 4:
        raise ValueError(f"images: expected shape (B, C, H, W), got {images.shape}")
    B, C, H, W = images.shape
    if H % size or W % size:
        raise ValueError(f"size: expected a divisor of the image's {H} × {W} pixels, got {size}")
    grid = reshape(images, (B, C, H // size, size, W // size, size))
    return reshape(permute(grid, 0, 2, 4, 1, 3, 5), (B, (H // size) * (W // size), C * size * size))


class ViT(nn.Module):
    """Vision transformer: patches and a class token through an encoder, logits from the class token.

    Parameters
    ----------
    config : Config
        ``vocab`` is the number of classes, ``context`` the number of patches plus one.
    patch, channels : int
        Side of a patch in pixels, and channels of the image.
    head : bool
        Whether there is a layer that gives logits; else `forward` gives the class token's features.
    rng : numpy.random.Generator
    """

    def __init__(self, config: Config, patch: int, channels: int = 1, head: bool = True, *,
                 rng: np.random.Generator) -> None:
        self.config, self.patch = config, patch
        self.project = nn.Linear(channels * patch * patch, config.d_model, rng=rng)
        self.class_token = nn.Parameter(np.zeros(config.d_model, np.float32))
        self.position = nn.Embedding(config.context, config.d_model, rng=rng)
        self.blocks = nn.ModuleList(Block(config, rng=rng) for _ in range(config.layers))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab, rng=rng) if head else None
        init_gpt2(self, config.layers, rng)

    def hidden(self, images: Operand) -> Operand:
        """Images (B, C, H, W) → (B, 1 + patches, D), the class token first."""
        x = self.project(patches(images, self.patch))
        B, P, D = x.shape
        if P + 1 != self.config.context:
            wanted = self.config.context - 1
            raise ValueError(f"images: expected {wanted} patches of side {self.patch}, got {P}")
        first = expand(reshape(self.class_token, (1, 1, D)), (B, 1, D))
        x = cat([first, x], 1) + self.position(namespace(x).arange(P + 1))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Operand) -> Operand:
        """Images (B, C, H, W) → logits (B, classes), or without a head the features (B, D)."""
        features = self.hidden(images)[:, 0]
        return features if self.head is None else self.head(features)

    def loss(self, images: Operand, labels: np.ndarray) -> Tensor:
        """Mean cross-entropy of the labels (B,)."""
        return cross_entropy(self(images), labels)
