"""Hybrid noise: a token may turn into [MASK], or into another token without saying so.

A model trained on masks alone trusts every token that it sees. Two ways to mix in uniform noise teach it not
to; V tokens, [MASK] is number V.

    ε-hybrid   at level t: [MASK] with probability t; else a uniform token with probability ε, else x₀
    γ-hybrid   at noise σ: e^{σQ},  Q = (1 − γ) Q_absorb + γ Q_uniform, whose closed form is
               P([MASK]) = 1 − e^{−(1−γ)σ};  unmasked, x₀ with probability e^{−γσ} + (1 − e^{−γσ})/V

The first is trained with a weighted cross-entropy, the second with the score entropy of SEDD.
Fathi, Scholak and Noël 2025, arXiv 2504.06416; score entropy: Lou, Meng and Ermon 2024,
arXiv 2310.16834.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minattn.autograd import exp, gather, log_softmax, where
from minattn.autograd.engine import Array, Operand, raw

PAPERS = (196,)

__all__ = ["Noised", "epsilon_hybrid_loss", "epsilon_hybrid_marginal", "epsilon_hybrid_noise",
           "gamma_hybrid_loss", "gamma_hybrid_marginal", "gamma_hybrid_noise", "naive_epsilon_loss",
           "naive_marginal", "naive_score_entropy", "rate_matrices", "score_entropy"]


class Noised(NamedTuple):
    """A noised text: ids (B, N), and where a token was masked, or replaced by a drawn one (maybe itself)."""

    ids: np.ndarray
    masked: np.ndarray
    shuffled: np.ndarray


# ---- naive: rates and their matrix exponential, losses by loops


def rate_matrices(V: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q_absorb, Q_uniform), each (V + 1, V + 1), with the rate from state x to state y in row x, column y.

    Q_absorb sends every token to [MASK] at rate 1; Q_uniform sends it to each of the V tokens at rate 1/V.
    """
    absorb, uniform = np.zeros((V + 1, V + 1)), np.zeros((V + 1, V + 1))
    for x in range(V):
        absorb[x, V] += 1
        absorb[x, x] -= 1
        for y in range(V):
            uniform[x, y] += 1 / V
            uniform[x, x] -= 1 / V
    return absorb, uniform


def naive_marginal(rates: np.ndarray, sigma: float) -> np.ndarray:
    """e^{σQ} by its power series: P(state at noise σ | x₀) in row x₀.

    The series is summed for σQ/2ᵐ, small enough to converge quickly, and the result squared m times.
    """
    halvings = max(0, int(np.ceil(np.log2(max(sigma * np.abs(rates).sum(1).max(), 1e-300)))) + 3)
    small = sigma * rates / 2**halvings
    total, term = np.eye(len(rates)), np.eye(len(rates))
    for k in range(1, 20):
        term = term @ small / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total


def naive_epsilon_loss(logits: np.ndarray, x0: np.ndarray, noised: Noised, t: np.ndarray, epsilon: float,
                       lam: float = 1.0) -> complex:
    """The ε-hybrid loss, token by token; logits (B, N, V) may be complex, for derivatives by a small step."""
    B, N, _ = logits.shape
    total = 0.0
    for b in range(B):
        for p in range(N):
            surprise = np.log(sum(np.exp(z) for z in logits[b, p])) - logits[b, p, x0[b, p]]
            if noised.masked[b, p]:
                total += surprise / t[b, p]
            elif noised.shuffled[b, p]:
                total += surprise * lam * (1 - epsilon) / (1 - t[b, p])
            else:
                total += surprise * lam * epsilon / (1 - t[b, p])
    return total / (B * N)


def naive_score_entropy(log_scores: np.ndarray, x: int, x0: int, sigma: float, gamma: float) -> complex:
    """Score entropy of one token, summed over all states y ≠ x with the rates and marginals of e^{σQ}."""
    V = len(log_scores) - 1
    absorb, uniform = rate_matrices(V)
    rates = (1 - gamma) * absorb + gamma * uniform
    p = naive_marginal(rates, sigma)[x0]
    total = 0.0
    for y in range(V + 1):
        if y != x and rates[y, x] > 0:
            ratio = p[y] / p[x]
            constant = ratio * (np.log(ratio) - 1) if ratio > 0 else 0.0
            total += rates[y, x] * (np.exp(log_scores[y]) - ratio * log_scores[y] + constant)
    return total


# ---- marginals in closed form, and draws from them


def epsilon_hybrid_marginal(V: int, t: float, epsilon: float) -> np.ndarray:
    """P(x_t | x₀) of ε-hybrid noise as a matrix (V + 1, V + 1), x₀ in rows, [MASK] last.

    (1 − t) [(1 − ε) 1 + (ε/V) 11ᵀ] for the tokens and t for [MASK]: the shuffling e^{−ln(1−ε) Q_uniform},
    then the masking e^{−ln(1−t) Q_absorb}.
    """
    _within("t", t)
    _within("epsilon", epsilon)
    return _marginal(V, 1 - np.asarray(t), 1 - np.asarray(epsilon))


def gamma_hybrid_marginal(V: int, sigma: float, gamma: float) -> np.ndarray:
    """P(x_σ | x₀) = e^{σQ} of γ-hybrid noise as a matrix (V + 1, V + 1), x₀ in rows, [MASK] last.

    Q_absorb and Q_uniform commute, so a token survives unmasked with e^{−(1−γ)σ} and unshuffled with e^{−γσ}.
    """
    _within("sigma", sigma, np.inf)
    _within("gamma", gamma)
    return _marginal(V, np.exp(-(1 - gamma) * sigma), np.exp(-gamma * sigma))


def _marginal(V: int, seen: Array, kept: Array) -> np.ndarray:
    """Unmasked with probability `seen`, and then as it was with `kept`, else a uniform token."""
    if V < 1:
        raise ValueError(f"V: expected at least 1 token, got {V}")
    out = np.zeros((V + 1, V + 1))
    out[:V, :V] = seen * (kept * np.eye(V) + (1 - kept) / V)
    out[:V, V], out[V, V] = 1 - seen, 1
    return out


def epsilon_hybrid_noise(rng: np.random.Generator, x0: Array, t: Array, epsilon: float, mask_id: int
                         ) -> Noised:
    """Draw x_t of ε-hybrid noise.

    Parameters
    ----------
    rng : numpy.random.Generator
    x0 : array of int (B, N)
        Tokens in [0, mask_id).
    t : array
        Noise levels in [0, 1], broadcasting to (B, N).
    epsilon : float
        Share of the unmasked tokens that are replaced by a uniform one; 0 is MDLM's noise.
    mask_id : int
        V, the id of [MASK] and the number of tokens.

    Raises
    ------
    ValueError
        If a token, a level or a probability is out of its range.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    x0, t = _tokens(x0, mask_id), _spread("t", t, np.shape(x0))
    _within("epsilon", epsilon)
    return _noise(rng, x0, t, np.asarray(epsilon), mask_id)


def gamma_hybrid_noise(rng: np.random.Generator, x0: Array, sigma: Array, gamma: float, mask_id: int
                       ) -> Noised:
    """Draw x_σ of γ-hybrid noise.

    Parameters
    ----------
    rng : numpy.random.Generator
    x0 : array of int (B, N)
        Tokens in [0, mask_id).
    sigma : array
        Total noise σ ≥ 0, broadcasting to (B, N).
    gamma : float
        Share of the uniform process: 0 is masking alone, 1 is uniform noise alone.
    mask_id : int
        V, the id of [MASK] and the number of tokens.

    Raises
    ------
    ValueError
        If a token, a noise or a probability is out of its range.

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    x0, sigma = _tokens(x0, mask_id), _spread("sigma", sigma, np.shape(x0), np.inf)
    _within("gamma", gamma)
    return _noise(rng, x0, -np.expm1(-(1 - gamma) * sigma), -np.expm1(-gamma * sigma), mask_id)


def _noise(rng: np.random.Generator, x0: Array, masking: Array, shuffling: Array, V: int) -> Noised:
    masked = rng.random(x0.shape) < masking
    shuffled = (rng.random(x0.shape) < shuffling) & ~masked
    ids = np.where(shuffled, rng.integers(0, V, x0.shape), x0)
    return Noised(np.where(masked, V, ids), masked, shuffled)


# ---- losses


def epsilon_hybrid_loss(logits: Operand, x0: Array, noised: Noised, t: Array, epsilon: float,
                        lam: float = 1.0, where_active: Array | None = None) -> Operand:
    """Cross-entropy of x₀, weighted by what happened to the token; the mean over tokens.

        1/t where masked;   λ (1 − ε)/(1 − t) where shuffled;   λ ε/(1 − t) where left alone

    Parameters
    ----------
    logits : (B, N, V)
        Of x₀ at each position, without [MASK].
    x0 : array of int (B, N)
    noised : Noised
        What `epsilon_hybrid_noise` made of x0 at levels t.
    t : array
        Noise levels, broadcasting to (B, N).
    epsilon, lam : float
        ε of the noise, and λ, the weight of the unmasked tokens.
    where_active : array of bool, optional
        Which tokens count; all by default. Broadcasts to (B, N).

    Raises
    ------
    ValueError
        If shapes do not fit, or a level rules out what happened (masked at t = 0, unmasked at t = 1).

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    if logits.ndim != 3 or np.shape(x0) != logits.shape[:2]:
        raise ValueError(f"logits: expected shape (B, N, V) for x0 {np.shape(x0)}, got {logits.shape}")
    x0, t = _tokens(x0, logits.shape[-1]), _spread("t", t, np.shape(x0))
    _within("epsilon", epsilon)
    if (t[noised.masked] == 0).any() or (t[~noised.masked] == 1).any():
        raise ValueError("t: expected a level at which the tokens can be as they are, "
                         "got one masked at t = 0 or unmasked at t = 1")
    weight = np.where(noised.shuffled, lam * (1 - epsilon), lam * epsilon)
    weight = np.where(noised.masked, 1.0, weight) / np.where(noised.masked, t, 1 - t)
    if where_active is not None:
        active = np.broadcast_to(where_active, x0.shape)
        weight = weight * active * (x0.size / active.sum())
    surprise = -gather(log_softmax(logits, -1), -1, x0[..., None])[..., 0]
    return (surprise * weight.astype(raw(logits).dtype)).mean()


def score_entropy(log_scores: Operand, x: Array, x0: Array, sigma: Array, gamma: float) -> Operand:
    """Denoising score entropy of SEDD under γ-hybrid noise, for each token.

        Σ_{y ≠ x} Q(y → x) [s_y − r_y log s_y + r_y (log r_y − 1)],    r_y = p_σ(y | x₀) / p_σ(x | x₀)

    It is zero where s = r and positive elsewhere. Into [MASK] every token flows with rate 1 − γ, into a token
    every other with γ/V, so the rates leave one common factor for each x.

    Parameters
    ----------
    log_scores : (..., V + 1)
        log s_y, what the model says of the ratio p_σ(y)/p_σ(x) for every state y, [MASK] last.
    x, x0 : array of int (...)
        Noised and clean tokens.
    sigma : array
        Total noise σ > 0, broadcasting to x.
    gamma : float
        Share of the uniform process.

    Returns
    -------
    (...)
        Nats, to be multiplied by dσ/dt.

    Raises
    ------
    ValueError
        If shapes do not fit, a token is none, or [MASK] is seen at γ = 1.

    References
    ----------
    Lou et al., arXiv 2310.16834; Fathi et al. 2025, arXiv 2504.06416.
    """
    V = log_scores.shape[-1] - 1
    _within("gamma", gamma)
    if np.shape(x) != log_scores.shape[:-1] or np.shape(x0) != np.shape(x):
        raise ValueError(f"x, x0: expected shape {log_scores.shape[:-1]} as log_scores, "
                         f"got {np.shape(x)} and {np.shape(x0)}")
    x, x0 = _tokens(x, V + 1, "x"), _tokens(x0, V)
    sigma, masked = _spread("sigma", sigma, x.shape, np.inf), x == V
    if (sigma == 0).any() or (gamma == 1 and masked.any()):
        raise ValueError("sigma, gamma: expected noise that can have made x, "
                         "got sigma = 0, or [MASK] at gamma = 1")
    ratio, inflow = _ratios(x, x0, sigma, gamma, V)
    positive = np.where(ratio > 0, ratio, 1.0)
    constant = ratio * (np.log(positive) - 1)  # 0 · log 0 = 0
    ratio, inflow, constant = (a.astype(raw(log_scores).dtype) for a in (ratio, inflow, constant))
    logs = where(inflow > 0, log_scores[..., :V], np.zeros_like(ratio))  # without inflow a score may be 0
    return ((exp(logs) - logs * ratio + constant) * inflow).sum(-1)


def _ratios(x: Array, x0: Array, sigma: Array, gamma: float, V: int) -> tuple[np.ndarray, np.ndarray]:
    """r_y and Q(y → x) of the V tokens y; r is 1 where nothing flows."""
    masked, y = (x == V)[..., None], np.arange(V)
    sigma = sigma[..., None]
    # p(y | x₀) of an unmasked token
    token = np.exp(-gamma * sigma) * (y == x0[..., None]) - np.expm1(-gamma * sigma) / V
    here = np.take_along_axis(token, np.minimum(x, V - 1)[..., None], -1)
    odds = np.expm1((1 - gamma) * sigma)  # P([MASK]) / P(unmasked)
    inflow = np.where(masked, 1 - gamma, gamma / V) * (y != x[..., None])
    below = np.where(masked, odds, here)
    return np.where(inflow > 0, token, 1.0) / np.where(inflow > 0, below, 1.0), inflow


def gamma_hybrid_loss(log_scores: Operand, x0: Array, noised: Noised, sigma: Array, rate: Array,
                      gamma: float) -> Operand:
    """Mean over tokens of dσ/dt · `score_entropy`, the γ-hybrid training loss.

    Parameters
    ----------
    log_scores : (B, N, V + 1)
    x0 : array of int (B, N)
    noised : Noised
        What `gamma_hybrid_noise` made of x0 at noise sigma.
    sigma, rate : array
        σ(t) and dσ/dt, broadcasting to (B, N).
    gamma : float

    References
    ----------
    Fathi et al. 2025, arXiv 2504.06416.
    """
    rate = _spread("rate", rate, np.shape(x0), np.inf)
    loss = score_entropy(log_scores, noised.ids, x0, sigma, gamma)
    return (loss * rate.astype(raw(log_scores).dtype)).mean()


# ---- checks


def _within(name: str, value: Array, high: float = 1.0) -> None:
    value = np.asarray(value, dtype=np.float64)
    if not ((value >= 0) & (value <= high) & np.isfinite(value)).all():
        raise ValueError(f"{name}: expected numbers in [0, {high:g}], got {value.ravel()[:4].tolist()}")


def _spread(name: str, value: Array, shape: tuple[int, ...], high: float = 1.0) -> np.ndarray:
    """`value` at every position, once it is known to be in range."""
    _within(name, value, high)
    try:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), shape)
    except ValueError:
        raise ValueError(f"{name}: expected a shape that broadcasts to {shape}, "
                         f"got {np.shape(value)}") from None


def _tokens(x: Array, V: int, name: str = "x0") -> np.ndarray:
    x = np.asarray(x)
    if x.dtype.kind not in "iu" or (x.size and not 0 <= x.min() <= x.max() < V):
        raise ValueError(f"{name}: expected integers in [0, {V}), got {x.dtype} {x.ravel()[:4].tolist()}")
    return x
