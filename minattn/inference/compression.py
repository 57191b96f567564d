"""Weights in one byte, weights that are left out, and a student that learns from a teacher's whole law.

    int8         w_rk ≈ s_r n_rk,  s_r = max_k |w_rk| / 127,  n whole in [−127, 127]      a scale each output
    SmoothQuant  (X / s)(s W)ᵀ = X Wᵀ,  s_j = max |X_j|^α / max |W_j|^{1−α}       moves outliers into weights
    magnitude    drop the entries with the smallest |w_rk| of the matrix
    Wanda        drop in each row those with the smallest |w_rk| ‖X_k‖₂
    distillation T² KL(softmax(t/T) ‖ softmax(z/T)),  gradient T (softmax(z/T) − softmax(t/T)) in z

Matrices have the layout of `Linear`: (outputs R, inputs K).

Dettmers et al. 2022 (arXiv 2208.07339) for scales of rows, Xiao et al. 2023 (arXiv 2211.10438), Sun et al.
2024 (arXiv 2306.11695), Hinton et al. 2015 (arXiv 1503.02531); in paper 162 (Park et al. 2024, arXiv
2407.09111).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minattn import nn
from minattn.autograd import log_softmax, reshape
from minattn.autograd.engine import Array, Operand, Tensor, raw
from minattn.kernels import cross_entropy
from minattn.kernels.packed import WIDTH, Packed, packed_linear

PAPERS = (162,)

__all__ = ["Int8Linear", "Int8Weight", "distillation_loss", "int8_matmul", "magnitude_prune",
           "naive_distillation_loss", "naive_quantize_int8", "naive_wanda", "quantize_weights_int8", "smooth",
           "smoothquant_scales", "wanda_prune"]

LARGEST = 127


# --- naive --------------------------------------------------------------------------------------------------

def naive_quantize_int8(weight: Array) -> tuple[list[list[int]], list[float]]:
    """`quantize_weights_int8`, one number at a time: whole numbers, and the scale of each row."""
    numbers, scales = [], []
    for row in np.asarray(weight, np.float64).tolist():
        s = max(abs(w) for w in row) / LARGEST
        numbers.append([round(w / s) if s else 0 for w in row])
        scales.append(s)
    return numbers, scales


def naive_wanda(weight: Array, norms: Array, sparsity: float) -> list[list[float]]:
    """`wanda_prune`, row by row: sort by |w| ‖X‖ and drop from the bottom, of equal ones the earlier."""
    out = []
    for row in np.asarray(weight).tolist():
        order = sorted(range(len(row)), key=lambda k: abs(row[k]) * float(norms[k]))
        dropped = set(order[: int(sparsity * len(row))])
        out.append([0.0 if k in dropped else w for k, w in enumerate(row)])
    return out


def naive_distillation_loss(student: Array, teacher: Array, temperature: float) -> tuple[float, np.ndarray]:
    """T² KL of rows of logits (n, V), averaged, and its gradient in the student's, by loops."""
    T, rows, V = temperature, len(student), len(student[0])
    total, gradient = 0.0, np.zeros((rows, V))
    for r in range(rows):
        p, q = ([math.exp(float(z[r][c]) / T) for c in range(V)] for z in (teacher, student))
        p, q = ([x / math.fsum(law) for x in law] for law in (p, q))
        total += T**2 * math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        gradient[r] = [T * (b - a) / rows for a, b in zip(p, q, strict=True)]
    return total / rows, gradient


# --- int8 ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True, eq=False)
class Int8Weight:
    """A matrix (R, K) as whole numbers of one byte and a scale for each row.

    Attributes
    ----------
    values : array of int8 (R, K)
    scale : array of float32 or float64 (R,)
    """

    values: np.ndarray
    scale: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(R, K)."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of numbers and scales."""
        return self.values.nbytes + self.scale.nbytes

    def dense(self) -> np.ndarray:
        """The matrix that they stand for, in the dtype of the scales."""
        return self.values * self.scale[:, None]


def quantize_weights_int8(weight: Array) -> Int8Weight:
    """Round each row to whole multiples of its own scale s_r = max_k |w_rk| / 127.

    Parameters
    ----------
    weight : (R, K)
        Floating and finite.

    Returns
    -------
    Int8Weight
        No entry is off by more than s_r / 2; rows of zeros have scale 0.

    Raises
    ------
    ValueError
        If `weight` is no matrix of finite floating numbers.
    """
    w = _matrix("weight", weight)
    scale = np.abs(w).max(1) / w.dtype.type(LARGEST)
    safe = np.where(scale == 0, w.dtype.type(1), scale)[:, None]
    return Int8Weight(np.rint(w / safe).astype(np.int8), scale)


def int8_matmul(x: Array, weight: Int8Weight) -> np.ndarray:
    """X Wᵀ in whole numbers: rows of X (n, K) are rounded as those of W are, products summed in 32 bits.

    Returns (n, R) in the dtype of X. This is what a processor with 8-bit arithmetic does.
    """
    rounded = quantize_weights_int8(x)
    sums = rounded.values.astype(np.int32) @ weight.values.T.astype(np.int32)
    return (sums * rounded.scale[:, None] * weight.scale).astype(x.dtype)


class Int8Linear(nn.Module):
    """x Wᵀ + b with W in one byte an entry; not to be trained. Gradients reach x and b.

    Rows of a multiple of 32 entries in float32 go through the compiled kernel of `minattn.kernels.packed`,
    which reads bytes; its blocks get the scale 1, and the scale of the row comes after.

    Parameters
    ----------
    weight : Int8Weight (d_out, d_in)
    bias : Parameter (d_out), optional
    round_inputs : bool
        Also round each x to 8 bits, as `int8_matmul` does (then without a gradient in x).
    """

    def __init__(self, weight: Int8Weight, bias: nn.Parameter | None = None, *,
                 round_inputs: bool = False) -> None:
        self.weight, self.bias, self.round_inputs = weight, bias, round_inputs
        self._packed = _as_blocks(weight) if weight.shape[1] % WIDTH == 0 else None

    def forward(self, x: Operand) -> Operand:
        """x (…, d_in) → (…, d_out)."""
        if self.round_inputs:
            x = _rounded(x)
        if self._packed is not None and x.dtype == np.float32:
            out = packed_linear(x, self._packed) * self.weight.scale.astype(np.float32)
        else:
            out = x @ self.weight.dense().T.astype(x.dtype)
        return out if self.bias is None else out + self.bias


def _as_blocks(weight: Int8Weight) -> Packed:
    """The whole numbers in the layout of q8_0: before every 32 of them a float16 scale, which is 1."""
    (R, K), one = weight.shape, np.array([1], np.float16).view(np.int8)
    blocks = np.empty((R, K // WIDTH, 2 + WIDTH), np.int8)
    blocks[..., :2], blocks[..., 2:] = one, weight.values.reshape(R, -1, WIDTH)
    return Packed("q8_0", blocks.reshape(R, -1), (R, K))


def _rounded(x: Operand) -> Operand:
    """Each row of x (…, K) rounded to multiples of its largest magnitude over 127."""
    rows = raw(x).reshape(-1, x.shape[-1])
    out = quantize_weights_int8(rows).dense().reshape(x.shape)
    return Tensor(out) if isinstance(x, Tensor) else out


# --- SmoothQuant --------------------------------------------------------------------------------------------

def smoothquant_scales(largest: Array, weight: Array, alpha: float = 0.5) -> np.ndarray:
    """s_j = max |X_j|^α / max |W_j|^{1−α} for each input feature j; 1 where either maximum is 0.

    Parameters
    ----------
    largest : (K,)
        max |X_j| over calibration inputs.
    weight : (R, K)
        All matrices that read X, one below the other.
    alpha : float
        In [0, 1]: how much of the outliers moves into the weights.

    Raises
    ------
    ValueError
        If shapes do not fit, or `alpha` is out of range.
    """
    w, largest = _matrix("weight", weight), np.abs(np.asarray(largest))
    if largest.shape != w.shape[1:]:
        raise ValueError(f"largest: expected shape {w.shape[1:]}, a number for each input, "
                         f"got {largest.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a number in [0, 1], got {alpha}")
    most = np.abs(w).max(0)
    silent = (largest == 0) | (most == 0)
    largest, most = np.where(silent, 1, largest), np.where(silent, 1, most)
    return largest**alpha / most ** (1 - alpha)


def smooth(x: Array, weight: Array, alpha: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """(X / s, s W), whose product is X Wᵀ, for X (…, K) and W (R, K); both are easier to round."""
    s = smoothquant_scales(np.abs(x).reshape(-1, np.shape(x)[-1]).max(0), weight, alpha)
    return x / s, weight * s


# --- pruning ------------------------------------------------------------------------------------------------

def magnitude_prune(weight: Array, sparsity: float) -> np.ndarray:
    """The matrix with its ⌊sparsity · R · K⌋ entries of smallest magnitude set to 0.

    Parameters
    ----------
    weight : (R, K)
    sparsity : float
        In [0, 1].

    Raises
    ------
    ValueError
        If `weight` is no matrix of finite floating numbers, or `sparsity` out of range.
    """
    w = _matrix("weight", weight)
    return _without_lowest(np.abs(w).reshape(1, -1), w.reshape(1, -1), sparsity).reshape(w.shape)


def wanda_prune(weight: Array, norms: Array, sparsity: float) -> np.ndarray:
    """The matrix with, in each row, the ⌊sparsity · K⌋ entries of smallest |w_rk| ‖X_k‖₂ set to 0.

    Parameters
    ----------
    weight : (R, K)
    norms : (K,)
        ‖X_k‖₂ of each input feature over calibration inputs.
    sparsity : float
        In [0, 1].

    Raises
    ------
    ValueError
        If shapes do not fit, a norm is negative or not finite, or `sparsity` is out of range.
    """
    w, norms = _matrix("weight", weight), np.asarray(norms)
    if norms.shape != w.shape[1:] or not (np.isfinite(norms) & (norms >= 0)).all():
        raise ValueError(f"norms: expected {w.shape[1]} finite numbers ≥ 0, one for each input, got {norms}")
    return _without_lowest(np.abs(w) * norms, w, sparsity)


def _without_lowest(scores: Array, w: Array, sparsity: float) -> np.ndarray:
    """w with the share `sparsity` of each row that has the lowest scores set to 0."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: expected a number in [0, 1], got {sparsity}")
    n = int(sparsity * w.shape[1])
    if n == 0:
        return w.copy()
    edge = np.partition(scores, n - 1, axis=1)[:, n - 1 : n]
    at_edge = scores == edge
    left = n - (scores < edge).sum(1, keepdims=True)
    dropped = (scores < edge) | (at_edge & (at_edge.cumsum(1) <= left))  # of equal ones the earlier
    return np.where(dropped, w.dtype.type(0), w)


# --- distillation -------------------------------------------------------------------------------------------

def distillation_loss(student: Operand, teacher: Operand, targets: Array | None = None, *,
                      temperature: float = 2.0, alpha: float = 0.5) -> Operand:
    """α T² KL(softmax(t/T) ‖ softmax(z/T)) + (1 − α) cross-entropy of the targets; a mean over rows.

    T² makes the soft part's gradient as large as the other's, whatever the temperature.

    Parameters
    ----------
    student, teacher : (…, V)
        Logits z and t of both models; no gradient reaches the teacher.
    targets : array of int (…), optional
        Without them the soft part stands alone, with weight 1.
    temperature : float
        T above 0: the higher, the more the improbable tokens count.
    alpha : float
        In [0, 1].

    Raises
    ------
    ValueError
        If shapes differ, or a number is out of range.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"teacher: expected the shape of student, {student.shape}, got {teacher.shape}")
    if not 0 < temperature < math.inf or not 0 <= alpha <= 1:
        raise ValueError("temperature, alpha: expected a number above 0 and one in [0, 1], "
                         f"got {temperature}, {alpha}")
    rows = (-1, student.shape[-1])
    z, t = (log_softmax(reshape(x, rows) / temperature, -1) for x in (student, raw(teacher)))
    soft = nn.kl_div(z, t, log_target=True, reduction="batchmean") * temperature**2
    if targets is None:
        return soft
    return alpha * soft + (1 - alpha) * cross_entropy(student, targets)


def _matrix(name: str, x: Array | Sequence) -> np.ndarray:
    x = np.asarray(raw(x))
    if x.ndim != 2 or not x.shape[1] or x.dtype.kind != "f" or not np.isfinite(x).all():
        raise ValueError(f"{name}: expected a matrix of finite floating numbers, got {x.dtype} {x.shape}")
    return x
