"""Draw the README's picture with the library: `python book/_static/attention.py` writes attention.svg.

Four causal heads read one sentence. Nothing is trained: each head is a score function, written as one line.
"""

from pathlib import Path

import numpy as np

from minattn.attention import attention
from minattn.plots import heatmap

WORDS = "a cat sat and a dog sat too".split()
N = len(WORDS)
SAME = np.array([[word == other for other in WORDS] for word in WORDS], dtype=float)
HEADS = {
    "the neighbours": lambda s, b, h, i, j: s - (i - j) ** 2 / 2,
    "the beginning": lambda s, b, h, i, j: s - 0.7 * j,
    "the same word": lambda s, b, h, i, j: s + 4 * SAME[i, j],
    "all alike": lambda s, b, h, i, j: s,
}


def weights_of(score_mod):
    """The weights of one head whose scores come from positions and words alone."""
    x = np.zeros((1, 1, N, 1))
    _, weights = attention(
        x, x, x, score_mod=score_mod, mask_mod=lambda b, h, i, j: j <= i, return_weights=True
    )
    return weights[0, 0]


if __name__ == "__main__":
    maps = np.stack([weights_of(score_mod) for score_mod in HEADS.values()])
    figure = heatmap(np.where(np.tri(N), maps, np.nan), queries=WORDS, keys=WORDS, titles=list(HEADS))
    figure.set_size_inches(10, 3.0)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None}, facecolor="none")
