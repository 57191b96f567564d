"""What the grader knows of the exercises of the chapter attention (see `minattn.grade.task`)."""

import numpy as np

from minattn import attention as at
from minattn.autograd import vjp
from minattn.grade.plain import as_tests
from minattn.grade.task import Limit, Task


def sizes(rng):
    """B, H, N, M, D, E, all unequal where it matters."""
    B, H = rng.integers(1, 3, 2)
    N, M, D, E = rng.permutation([3, 4, 5, 7]) + rng.integers(0, 2) * 4
    return B, H, N, M, D, E


def draw_qkv(rng, scale=1.0, **fixed):
    B, H, N, M, D, E = sizes(rng)
    N, M = fixed.get("N", N), fixed.get("M", M)
    return {
        "q": scale * rng.standard_normal((B, H, N, D)),
        "k": scale * rng.standard_normal((B, H, M, D)),
        "v": rng.standard_normal((B, H, M, E)),
    }


# --- task 1 -----------------------------------------------------------------------------------------------


def draw_scores(rng, scale=1.0, empty=False):
    B, H, N, M, _, _ = sizes(rng)
    visible = rng.random((B, H, N, M)) < 0.6
    visible[..., 0] = True
    if empty:
        visible[:, :, 1] = False
    return {"scores": scale * rng.standard_normal((B, H, N, M)), "visible": visible}


def softmax_reference(scores, visible):
    return at.attention_weights(np.where(visible, scores, -np.inf), "softmax")


def softmax_solution(scores, visible):
    out = np.zeros(scores.shape)
    for row in np.ndindex(scores.shape[:-1]):
        seen = visible[row]
        if seen.any():
            e = np.exp(scores[row][seen] - scores[row][seen].max())
            out[row][seen] = e / e.sum()
    return out


def wrong_axis(scores, visible):
    """The softmax runs over the queries (axis -2); the weights of one query over its keys must sum to 1."""
    s = np.where(visible, scores, -np.inf)
    e = np.exp(s - np.maximum(s.max(-2, keepdims=True), -1e300))
    return e / np.where(e.sum(-2, keepdims=True) > 0, e.sum(-2, keepdims=True), 1)


def zero_for_hidden(scores, visible):
    """Hidden scores are set to 0, and exp(0) is 1: set them to minus infinity."""
    s = np.where(visible, scores, 0.0)
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def masked_too_late(scores, visible):
    """Hidden weights are removed after the softmax, so what is left does not sum to 1."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) * visible


def overflowing(scores, visible):
    """exp of a large score is infinite: take the row's largest visible score off first."""
    e = np.exp(scores) * visible
    return e / np.where(e.sum(-1, keepdims=True) > 0, e.sum(-1, keepdims=True), 1)


# --- task 2 -----------------------------------------------------------------------------------------------


def attention_solution(q, k, v):
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b, h, i in np.ndindex(q.shape[:3]):
        s = np.array([np.dot(q[b, h, i], key) for key in k[b, h]]) / np.sqrt(q.shape[3])
        p = np.exp(s - s.max())
        for weight, value in zip(p / p.sum(), v[b, h], strict=True):
            out[b, h, i] += weight * value
    return out


def no_scale(q, k, v):
    """The scores are not divided by sqrt(D)."""
    s = q @ np.swapaxes(k, -1, -2)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def scale_by_d(q, k, v):
    """The scores are divided by D; it is the square root of D."""
    s = q @ np.swapaxes(k, -1, -2) / q.shape[-1]
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def over_queries(q, k, v):
    """The softmax runs over the queries (axis -2); it must run over the keys."""
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    p = np.exp(s - s.max(-2, keepdims=True))
    return p / p.sum(-2, keepdims=True) @ v


def not_normalised(q, k, v):
    """The exponentials are not divided by their sum."""
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    return np.exp(s) @ v


# --- task 3 -----------------------------------------------------------------------------------------------


def draw_backward(rng, **fixed):
    x = draw_qkv(rng, **fixed)
    return {**x, "g": rng.standard_normal((*x["q"].shape[:3], x["v"].shape[3]))}


def backward_reference(q, k, v, g):
    return tuple(d.numpy() for d in vjp(at.attention, (q, k, v), g)[1])


def backward_solution(q, k, v, g):
    dq, dk, dv = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    root = np.sqrt(q.shape[3])
    for b, h, i in np.ndindex(q.shape[:3]):
        s = k[b, h] @ q[b, h, i] / root
        p = np.exp(s - s.max())
        p = p / p.sum()
        jacobian = np.diag(p) - np.outer(p, p)
        ds = jacobian @ (v[b, h] @ g[b, h, i])
        dv[b, h] += np.outer(p, g[b, h, i])
        dq[b, h, i] = ds @ k[b, h] / root
        dk[b, h] += np.outer(ds, q[b, h, i]) / root
    return dq, dk, dv


def diagonal_only(q, k, v, g):
    """ds = p * dp lacks the second part of softmax's derivative: minus p times the sum of p * dp over the
    row."""
    root = np.sqrt(q.shape[-1])
    s = q @ np.swapaxes(k, -1, -2) / root
    p = np.exp(s - s.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    ds = p * (g @ np.swapaxes(v, -1, -2)) / root
    return ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ g


def scale_lost(q, k, v, g):
    """dq and dk are not divided by sqrt(D), though the scores were."""
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    p = np.exp(s - s.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    dp = g @ np.swapaxes(v, -1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    return ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ g


def cotangent_of_ones(q, k, v, g):
    """g is not used: these are the gradients of the plain sum of the outputs."""
    p_sum = np.ones(g.shape)
    root = np.sqrt(q.shape[-1])
    s = q @ np.swapaxes(k, -1, -2) / root
    p = np.exp(s - s.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    dp = p_sum @ np.swapaxes(v, -1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / root
    return ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ p_sum


# --- task 4 -----------------------------------------------------------------------------------------------


def draw_tiled(rng, scale=1.0):
    """Scores that grow from key to key, so that every tile has a new largest; a last tile that is shorter."""
    x = draw_qkv(rng, scale)
    M, D = x["k"].shape[2:]
    x["q"] = np.abs(x["q"]) + 0.1
    x["k"] = np.sort(x["k"], axis=2) + 0.1 * np.arange(M)[:, None] / D
    return {**x, "tile": int(rng.choice([t for t in (2, 3) if M % t and M > t]))}


def draw_large(rng):
    """3072 × 3072 scores take 72 MiB in float64; a tile of 64 keys takes 1.5 MiB."""
    q, k, v = (rng.standard_normal((1, 1, 3072, 8)) for _ in range(3))
    return {"q": q, "k": k, "v": v, "tile": 64}


def tiled_reference(q, k, v, tile):
    return at.attention(q, k, v)


def tiled_solution(q, k, v, tile):
    m = np.full((*q.shape[:3], 1), -np.inf)
    z, u = np.zeros(m.shape), np.zeros((*q.shape[:3], v.shape[3]))
    for start in range(0, k.shape[2], tile):
        s = q @ np.swapaxes(k[:, :, start : start + tile], -1, -2) / np.sqrt(q.shape[3])
        new = np.maximum(m, s.max(-1, keepdims=True))
        e = np.exp(s - new)
        z = z * np.exp(m - new) + e.sum(-1, keepdims=True)
        u = u * np.exp(m - new) + e @ v[:, :, start : start + tile]
        m = new
    return u / z


def never_rescaled(q, k, v, tile):
    """When a larger score arrives, the sums so far must be multiplied by exp(m - new)."""
    m = np.full((*q.shape[:3], 1), -np.inf)
    z, u = np.zeros(m.shape), np.zeros((*q.shape[:3], v.shape[3]))
    for start in range(0, k.shape[2], tile):
        s = q @ np.swapaxes(k[:, :, start : start + tile], -1, -2) / np.sqrt(q.shape[3])
        m = np.maximum(m, s.max(-1, keepdims=True))
        e = np.exp(s - m)
        z, u = z + e.sum(-1, keepdims=True), u + e @ v[:, :, start : start + tile]
    return u / z


def last_tile_dropped(q, k, v, tile):
    """Keys after the last whole tile are left out: the last tile may be shorter."""
    whole = k.shape[2] // tile * tile
    s = q @ np.swapaxes(k[:, :, :whole], -1, -2) / np.sqrt(q.shape[3])
    if not whole:
        return np.zeros((*q.shape[:3], v.shape[3]))
    p = np.exp(s - s.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v[:, :, :whole]


def mean_of_tiles(q, k, v, tile):
    """Every tile counts alike; a tile must count by its total of exponentials."""
    outs = []
    for start in range(0, k.shape[2], tile):
        s = q @ np.swapaxes(k[:, :, start : start + tile], -1, -2) / np.sqrt(q.shape[3])
        p = np.exp(s - s.max(-1, keepdims=True))
        outs.append(p / p.sum(-1, keepdims=True) @ v[:, :, start : start + tile])
    return sum(outs) / len(outs)


TASKS = [
    Task(
        1,
        "masked_softmax",
        "warm-up",
        {"runs": 1, "shapes": 1, "values": 6, "limits": 2},
        draw_scores,
        softmax_reference,
        softmax_solution,
        (
            "What must a hidden score be, so that its exponential is 0?",
            "Take the largest visible score of each row off before exp: the weights do not change.",
            "The largest of an empty row is minus infinity, and inf - inf is NaN: put 0 there, "
            "and divide by 1.",
        ),
        (wrong_axis, zero_for_hidden, masked_too_late, overflowing),
        limits=(
            Limit("scores of about 1000", lambda rng: draw_scores(rng, 1000.0)),
            Limit("a row in which nothing is visible", lambda rng: draw_scores(rng, empty=True)),
        ),
    ),
    Task(
        2,
        "attention",
        "core",
        {"runs": 1, "shapes": 1, "values": 6, "limits": 2},
        draw_qkv,
        at.attention,
        attention_solution,
        (
            "Two products of matrices with a softmax between them.",
            "np.swapaxes(k, -1, -2) turns keys into columns; `@` works over all batches and heads at once.",
            "scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(D), softmax over axis -1, then @ v.",
        ),
        (no_scale, scale_by_d, over_queries, not_normalised),
        limits=(
            Limit("logits beyond exp's range", lambda rng: draw_qkv(rng, 30.0)),
            Limit("a single key", lambda rng: draw_qkv(rng, M=1)),
        ),
    ),
    Task(
        3,
        "attention_backward",
        "core",
        {"runs": 1, "shapes": 1, "values": 6, "gradients": 2},
        draw_backward,
        backward_reference,
        backward_solution,
        (
            "Compute the weights p first, as in task 2; each line of the specification is then "
            "one expression.",
            "A sum over i of p[i, j] * g[i] is np.swapaxes(p, -1, -2) @ g.",
            "ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / sqrt(D); then ds @ k and its transpose @ q.",
        ),
        (diagonal_only, scale_lost, cotangent_of_ones),
        outputs=("dq", "dk", "dv"),
        forward=attention_solution,
        wrt=("q", "k", "v"),
    ),
    Task(
        4,
        "tiled_attention",
        "stretch",
        {"runs": 1, "shapes": 1, "values": 6, "limits": 1, "bytes": 1},
        draw_tiled,
        tiled_reference,
        tiled_solution,
        (
            "Start from m = -inf, z = 0 and u = 0 for every query; exp(-inf) is 0, so the first "
            "tile needs no care.",
            "When m grows, all that was summed so far is too large by exp(new - m): multiply z "
            "and u by exp(m - new).",
            "range(0, M, tile) and a slice [start:start + tile] take the shorter last tile along.",
        ),
        (never_rescaled, last_tile_dropped, mean_of_tiles),
        limits=(Limit("logits beyond exp's range", lambda rng: draw_tiled(rng, 30.0)),),
        large=draw_large,
        memory=48 * 2**20,
    ),
]

test_exercises = as_tests("attention", TASKS)
