"""How selective are the heads of a language model, and how steep are normalisers?

Heads: SmolLM2-135M-Instruct reads texts of 512 tokens. The last 16 queries of each head look back; their
context is cut to the first token, which serves as a sink, and the last L − 1 ones, over which the softmax is
taken anew. Does the largest weight beside the sink's fall as L grows? And of the N heaviest tokens, which
share lies in a ball around their sum that holds none of the others?

Slopes: the spectral norm of a softmax's Jacobian at two equal weights against the temperature; and the
largest weight of 512 unit-normal logits, for a softmax and for one whose logits are multiplied by ln L.
"""

# mypy: disable-error-code="dict-item"

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from minattn import data
from minattn.autograd import no_grad
from minattn.findings import Finding
from minattn.scores.limits import normalizer_jacobian, normalizers, separable_fraction
from minattn.transformer.pretrained import load

PAPERS = (139,)

TOKENS, QUERIES, CONTEXTS, TEXTS = 512, 16, (64, 128, 256, 512), 2
CHOSEN, AT, EVERY = (1, 2, 4, 8, 16, 32, 64), 256, 5
TEMPERATURES, DRAWS = (0.1, 0.3, 1.0, 3.0, 10.0), 200

softmax = normalizers["softmax"]


@functools.cache
def smollm2() -> Any:
    """The model, loaded once."""
    return load("smollm2")


def passage(rng: np.random.Generator) -> np.ndarray:
    """TOKENS tokens (1, TOKENS) from a random place of Hamlet."""
    play = data.shakespeare(("hamlet",))
    start = int(rng.integers(0, len(play) - 8 * TOKENS))
    return np.array([smollm2().tokenizer.encode(play[start : start + 8 * TOKENS])[:TOKENS]])


def look(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (heads, QUERIES, TOKENS) of the last queries, −∞ for what comes later, and values
    (heads, TOKENS, D) of unit length; heads of all layers."""
    model, scores, values, handles = smollm2(), [], [], []
    groups = model.config.heads // model.config.n_kv_heads
    for block in model.blocks:
        handles += [
            block.attn.hook_scores.register_forward_hook(
                lambda module, inputs, s: scores.append(s.data[0, :, -QUERIES:].astype(np.float64))),
            block.attn.hook_v.register_forward_hook(
                lambda module, inputs, v: values.append(np.repeat(v.data[0], groups, 0).astype(np.float64)))]
    with no_grad():
        model.hidden(ids)
    for handle in handles:
        handle.remove()
    v = np.concatenate(values)
    return np.concatenate(scores), v / np.linalg.norm(v, axis=-1, keepdims=True)


def context(query: int, L: int) -> np.ndarray:
    """Positions that one of the last queries sees: the first, and the last L − 1 up to itself."""
    here = TOKENS - QUERIES + query
    return np.concatenate([[0], np.arange(max(1, here - L + 2), here + 1)])


def peaks(scores: np.ndarray, L: int) -> np.ndarray:
    """Largest weight beside the first token's, (heads,), mean over the queries."""
    found = [softmax(scores[:, n, context(n, L)])[:, 1:].max(-1) for n in range(QUERIES)]
    return np.mean(found, axis=0)


def fractions(scores: np.ndarray, v: np.ndarray) -> list[float]:
    """Mean separable fraction over heads and every fifth query, for each number of chosen tokens."""
    seen = [(q, context(q, AT)) for q in range(0, QUERIES, EVERY)]
    return [float(np.mean([separable_fraction(softmax(scores[:, q, at]), v[:, at], n) for q, at in seen]))
            for n in CHOSEN]


def in_heads(seed: int) -> Finding:
    """Both questions about SmolLM2's heads."""
    rng = np.random.default_rng([seed, 139])
    largest, shares = [], []
    for _ in range(TEXTS):
        scores, v = look(passage(rng))
        largest.append([peaks(scores, L) for L in CONTEXTS])
        shares.append(fractions(scores, v))
    peak, share = np.mean(largest, 0), np.mean(shares, 0)
    return Finding(
        paper=139,
        claim="In SmolLM2's heads the largest weight beside the sink's is lower for 512 tokens than for 64 "
              "in at least 0.7 of the heads, and the separable fraction falls from 1 with each doubling of "
              "the chosen tokens, to at most 0.65 at a quarter of them.",
        numbers={"falling": float((peak[-1] < peak[0]).mean()),
                 **{f"share_{n}": s for n, s in zip(CHOSEN, share, strict=True)}},
        bars=[("falling", ">=", 0.7), ("share_1", "==", 1), ("share_64", "<=", 0.65),
              *((f"share_{2 * n} - share_{n}", "<", 0) for n in CHOSEN[:-1])],
        curves={"contexts": CONTEXTS, "peak": peak.mean(1), "chosen": CHOSEN, "share": share}, seed=seed)


def of_normalizers(seed: int) -> Finding:
    """Slopes and peaks of normalisers on logits alone."""
    rng = np.random.default_rng([seed, 140])
    norms = [np.linalg.norm(normalizer_jacobian("softmax", np.array([1.0, 1.0, -1e5]), T), 2)
             for T in TEMPERATURES]
    z = rng.standard_normal((DRAWS, TOKENS))
    peak = {name: float(f(z).max(-1).mean()) for name, f in normalizers.items()}
    return Finding(
        paper=139,
        claim="At two equal weights the spectral norm of a softmax's Jacobian is 1/(2T), a line of slope −1; "
              "and of 512 unit-normal logits the largest weight is at least five times as large if logits "
              "are multiplied by ln L.",
        numbers={"slope": float(np.polyfit(np.log(TEMPERATURES), np.log(norms), 1)[0]),
                 "at_one": float(norms[2]), **{f"peak_{name}": value for name, value in peak.items()}},
        bars=[("abs(slope + 1)", "<=", 1e-9), ("abs(at_one - 0.5)", "<=", 1e-12),
              ("peak_ssmax / peak_softmax", ">=", 5)],
        curves={"temperatures": TEMPERATURES, "norms": norms}, seed=seed)


def run(seed: int) -> list[Finding]:
    """Heads and normalisers."""
    return [in_heads(seed), of_normalizers(seed)]
