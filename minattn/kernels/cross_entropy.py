"""Softmax cross-entropy: its derivative, softmax − target, is simpler than that of its parts."""

from __future__ import annotations

from minattn.autograd import exp, log_softmax, namespace, one_hot, primitive, reshape, sum
from minattn.autograd.engine import Array, Operand, raw


def _cross_entropy(logits: Array, /, target: Array) -> tuple[Array, Array]:
    logp = log_softmax(logits, -1)
    counted = namespace(logp).where(target == 0, 0, logp)  # not 0·∞ for a class ruled out by a logit of −∞
    return -(target * counted).sum(-1), logp

def _d_cross_entropy(g, out, logits, target, saved):
    logp = log_softmax(logits, -1) if saved is None else saved
    total = target.sum(-1, keepdims=True)  # 1, or 0 at ignored positions
    return reshape(g, (*g.shape, 1)) * (exp(logp) * total - target)


def cross_entropy(logits: Operand, target: Array, *, ignore_index: int = -100, label_smoothing: float = 0.0,
                  reduction: str = "mean") -> Operand:
    """−Σ_c t_c log softmax(logits)_c, with logits (…, C) and classes `target` (…) of integers.

    Parameters
    ----------
    ignore_index : int
        Positions with this target count neither in the loss nor in the mean.
    label_smoothing : float
        ε in t = (1 − ε) one_hot + ε / C.
    reduction : {"mean", "sum", "none"}
        "mean" averages over the positions that count; a ValueError if there are none.
    """
    xp, C = namespace(logits), logits.shape[-1]
    target = xp.asarray(raw(target))
    if target.shape != logits.shape[:-1] or target.dtype.kind not in "iu":
        found = f"{target.dtype} {target.shape}"
        raise ValueError(f"target: expected integers of shape {logits.shape[:-1]}, got {found}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction: expected "mean", "sum" or "none", got {reduction!r}')
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    counts = target != ignore_index
    if not ((0 <= target) & (target < C) | ~counts).all():
        raise ValueError(f"target: expected classes in [0, {C}) or ignore_index={ignore_index}, got others")
    wanted = one_hot(xp.where(counts, target, 0), C, logits.dtype)
    wanted = (1 - label_smoothing) * wanted + label_smoothing / C if label_smoothing else wanted
    loss = entropy_of(logits, target=wanted * counts[..., None].astype(wanted.dtype))
    if reduction == "none":
        return loss
    if reduction == "sum":
        return sum(loss)
    n = int(counts.sum())
    if n == 0:
        raise ValueError(f"target: every position is ignored (ignore_index={ignore_index}); there is no mean")
    return sum(loss) / n


entropy_of = primitive(_cross_entropy, _d_cross_entropy, saves=True)
