"""Two findings in miniature for hyperschedules.

First, a source whose posterior is known exactly: a Markov chain with forbidden pairs, seen through ε-hybrid
noise. Two samplers call the same exact denoiser equally often; tokens revealed in one move are drawn
independently, so pairs go wrong, and only one of the samplers can mend them.

Second, one network on Shakespeare's letters, trained under blocks of several widths at once, from
autoregressive to all positions together: its bound on the loss for each width, and what it writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from minattn import data, nn
from minattn.autograd import Tensor, no_grad
from minattn.autograd.engine import raw
from minattn.findings import Finding
from minattn.transformer import (
    Config,
    Hyperschedule,
    HyperscheduleLM,
    adaptive_correction_sampler,
    block_loss,
    block_times,
    epsilon_hybrid_noise,
    linear_moves,
    mdlm_sampler,
    scheduled_generate,
)
from minattn.transformer.hyperschedule_lm import Written

from .shakespeare import Corpus, corpus

PAPERS = (196,)

# ---- a chain with forbidden pairs

V, N, FORBIDDEN, EPSILON, SAMPLES = 5, 8, 2, 0.01, 2000
ETA, STEPS = 0.5, 4
ETAS = (0.0, 0.015, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


def chain(rng: np.random.Generator) -> np.ndarray:
    """Transitions (V, V): rows from Dirichlet(1), two entries of each row forbidden."""
    P = rng.dirichlet(np.ones(V), V)
    for row in P:
        row[rng.choice(V, FORBIDDEN, replace=False)] = 0
    return P / P.sum(1, keepdims=True)


def posterior(P: np.ndarray, epsilon: float = EPSILON) -> Callable[[np.ndarray], np.ndarray]:
    """The exact denoiser of a chain with a uniform start: ids (B, N) → ln P(x₀ₚ | x_t), (B, N, V).

    Forward–backward. A visible token y speaks for x with probability (1 − ε) 1[x = y] + ε/V, a masked one for
    all alike; the level t falls out.
    """
    states = len(P)
    seen = np.concatenate([(1 - epsilon) * np.eye(states) + epsilon / states, np.ones((states, 1))], 1)

    def denoise(ids: np.ndarray) -> np.ndarray:
        evidence = seen.T[ids]
        forward, backward = np.empty_like(evidence), np.ones_like(evidence)
        forward[:, 0] = evidence[:, 0]
        for n in range(1, ids.shape[1]):
            before = forward[:, n - 1] / forward[:, n - 1].sum(-1, keepdims=True)
            forward[:, n] = before @ P * evidence[:, n]
        for n in range(ids.shape[1] - 2, -1, -1):
            after = backward[:, n + 1] * evidence[:, n + 1] @ P.T
            backward[:, n] = after / after.sum(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            return np.log(forward * backward)

    return denoise


def valid(P: np.ndarray, x: np.ndarray) -> float:
    """Share of the sequences x (B, N) without a forbidden pair."""
    return float((P[x[:, :-1], x[:, 1:]] > 0).all(1).mean())


def pair_gap(P: np.ndarray, x: np.ndarray) -> float:
    """Total variation between the pairs in x (B, N) and those of the chain: 0 is the same, 1 is disjoint."""
    place, want = np.full(len(P), 1 / len(P)), np.zeros_like(P)
    for _ in range(x.shape[1] - 1):
        want += place[:, None] * P / (x.shape[1] - 1)
        place = place @ P
    got = np.zeros_like(P)
    np.add.at(got, (x[:, :-1], x[:, 1:]), 1 / x[:, 1:].size)
    return float(np.abs(got - want).sum() / 2)


def corrected(rng: np.random.Generator, denoise: Callable, steps: int, corrections: int, eta: float,
              samples: int = SAMPLES) -> np.ndarray:
    """Samples (B, N) of ACS with linear steps, then corrections at level 1/N."""
    start = np.full((samples, N), V)
    return adaptive_correction_sampler(rng, denoise, start, linear_moves(steps, corrections, 1 / N), eta)


def correction_finding(seed: int) -> Finding:
    """ACS with 4 steps and 4 corrections against MDLM with 8 steps."""
    rng = np.random.default_rng(seed)
    P = chain(rng)
    denoise, start = posterior(P), np.full((SAMPLES, N), V)
    calls = [2, 4, 8, 16, 32]
    mdlm = {k: mdlm_sampler(rng, denoise, start, linear_moves(k)) for k in calls}
    acs = {k: corrected(rng, denoise, k // 2, k - k // 2, ETA) for k in calls}
    swept = [valid(P, corrected(rng, denoise, STEPS, STEPS, eta)) for eta in ETAS]
    truth = data.markov(rng, SAMPLES, N, P)
    return Finding(
        paper=196,
        claim="On a chain with forbidden pairs and with an exact denoiser, the adaptive correction sampler "
              "with 4 steps and 4 corrections writes more valid sequences than MDLM's sampler with 8 steps.",
        numbers={"acs_valid": valid(P, acs[2 * STEPS]), "mdlm_valid": valid(P, mdlm[2 * STEPS]),
                 "mdlm_4_valid": valid(P, mdlm[STEPS]), "mdlm_32_valid": valid(P, mdlm[32]),
                 "acs_gap": pair_gap(P, acs[2 * STEPS]), "mdlm_gap": pair_gap(P, mdlm[2 * STEPS]),
                 "chain_gap": pair_gap(P, truth)},
        bars=[("acs_valid - mdlm_valid", ">=", 0.08)],
        seed=seed,
        curves={"calls": calls, "mdlm": [valid(P, mdlm[k]) for k in calls],
                "acs": [valid(P, acs[k]) for k in calls], "eta": ETAS, "swept": swept})


# ---- one network, several schedules

LENGTH, WIDTHS, BATCH, TRAINING = 32, (1, 4, 32), 16, 2000
RATE, FLOOR, WARMUP, BETAS, DECAY = 3e-3, 1.5e-4, 50, (0.9, 0.99), 0.1
NOISE, SHOWN = 0.1, (1, 2, 4, 8, 16, 32)


def config() -> Config:
    """3 blocks, 4 heads, D = 96; one token more than the alphabet, for [MASK]."""
    return Config(vocab=len(corpus().vocabulary) + 1, context=LENGTH, layers=3, heads=4, d_model=96,
                  position="rope", bias=False)


def fit(seed: int, steps: int = TRAINING) -> tuple[HyperscheduleLM, nn.History]:
    """A network trained for `steps` steps, each under blocks of one of the widths.

    A block of one is always masked, as in an autoregressive schedule; the others are at one of 32 levels.
    """
    rng, letters = np.random.default_rng(seed), corpus()
    model = HyperscheduleLM(config(), rng=rng)

    def batches(rng: np.random.Generator) -> tuple:
        ids, _ = data.batches(rng, letters.train, BATCH, LENGTH)
        width = int(rng.choice(WIDTHS))
        t = block_times(rng, BATCH, LENGTH, width, 1 if width == 1 else LENGTH)
        return ids, epsilon_hybrid_noise(rng, ids, t, NOISE, model.mask_id), t, width

    optimizer = nn.AdamW(nn.decay_groups(model.parameters(), DECAY), lr=RATE, betas=BETAS)
    schedule = nn.schedule.cosine(RATE, steps=TRAINING, warmup=WARMUP, floor=FLOOR)

    def loss(model: HyperscheduleLM, batch: tuple) -> Tensor:
        return block_loss(model, *batch, epsilon=NOISE)

    history = nn.train(model, loss, batches, optimizer, steps, rng=rng, schedule=schedule, clip=1.0,
                       title="training under three schedules")
    model.eval()
    return model, history


def bound(model: HyperscheduleLM, width: int, windows: int = 256, seed: int = 0) -> float:
    """Nats a letter of validation text, at most, under blocks of `width` and 32 levels of masking.

    The MDLM bound: masked tokens count 1/t. For width 1 it is the loss itself, by the chain rule.
    """
    rng, text = np.random.default_rng(seed), corpus().validation
    text = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)
    total = 0.0
    for ids in np.array_split(text[rng.choice(len(text), windows, replace=False)], max(1, windows // 64)):
        t = block_times(rng, len(ids), LENGTH, width, 1 if width == 1 else LENGTH)
        noised = epsilon_hybrid_noise(rng, ids, t, 0.0, model.mask_id)
        with no_grad():
            total += len(ids) * float(raw(block_loss(model, ids, noised, t, width, epsilon=0.0)))
    return total / windows


def write(model: HyperscheduleLM, width: int, samples: int, eta: float, seed: int, cache: bool = True
          ) -> Written:
    """`samples` windows under blocks of `width` with as many levels: always as many moves as letters."""
    schedule = Hyperschedule.block(LENGTH, width, width)
    return scheduled_generate(model, schedule, rng=np.random.default_rng(seed), batch=samples, eta=eta,
                              cache=cache)


def words(letters: Corpus) -> set[str]:
    """The words of the training text."""
    return set(re.findall("[A-Za-z']+", letters.vocabulary.decode(letters.train)))


def word_share(ids: np.ndarray, known: set[str], letters: Corpus) -> float:
    """Share of the words written, the first and last of a window left out, that the training text knows."""
    found = [w for row in ids for w in re.findall("[A-Za-z']+", letters.vocabulary.decode(row))[1:-1]]
    return sum(w in known for w in found) / max(1, len(found))


def unigram() -> float:
    """Nats a letter of the validation text under the letters' frequencies in the training text."""
    letters = corpus()
    share = np.bincount(letters.train, minlength=len(letters.vocabulary)) / len(letters.train)
    return float(-np.log(np.maximum(share[letters.validation], 1e-6)).mean())


def schedules_finding(seed: int, steps: int = TRAINING, samples: int = 200) -> Finding:
    """One network under blocks of several widths: its bounds, and the words that it writes."""
    letters, (model, history) = corpus(), fit(seed, steps)
    known = words(letters)
    bounds = {width: bound(model, width) for width in SHOWN}
    texts = {width: write(model, width, samples, 0.0, seed) for width in WIDTHS}
    shares = {width: word_share(text.ids, known, letters) for width, text in texts.items()}
    mended = write(model, LENGTH, samples, ETA, seed)
    one, four, whole = (bounds[width] for width in WIDTHS)
    return Finding(
        paper=196,
        claim="One network trained under blocks of several widths serves all of them: autoregressive it "
              "predicts best and writes the most real words, and its bound rises with the blocks' width.",
        numbers={"bound_1": one, "bound_4": four, "bound_32": whole, "unigram": unigram(),
                 "words_1": shares[1], "words_4": shares[4], "words_32": shares[32],
                 "words_32_corrected": word_share(mended.ids, known, letters),
                 "rows_1": texts[1].rows, "rows_4": texts[4].rows, "rows_32": texts[32].rows},
        bars=[("bound_4 - bound_1", ">=", 0.1), ("bound_32 - bound_4", ">=", 0.03),
              ("unigram - bound_32", ">=", 0.5), ("words_1 - words_4", ">=", 0.1)],
        seed=seed,
        curves={"widths": SHOWN, "bounds": list(bounds.values()), "losses": history.losses,
                **{f"text_{width}": text.ids[:3].ravel().tolist() for width, text in texts.items()}})


def run(seed: int) -> list[Finding]:
    """Both findings."""
    return [correction_finding(seed), schedules_finding(seed)]
