"""What k states for a [MASK] can say and one cannot, and what repeating every token does to masking.

Two gaps in a row hold XY or YX, each half of the time, and nothing else tells which. A masked language model
fills each gap alone and pays 2 ln 2 for the pair; a graph of states can pay ln 2. The head is trained here on
states that are free parameters: an encoder has nothing to read, and its output would be the same every time.

Repeated MLM: on texts of a Markov chain, how well are masked copies and wholly lost tokens filled in, when
every token stands k times and each copy is masked with probability p?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minattn import nn
from minattn.autograd import cat, expand, log_softmax, no_grad, permute, reshape, sum
from minattn.autograd.engine import Operand, raw
from minattn.data import markov, random_transitions
from minattn.findings import Finding
from minattn.transformer import Config, MaskedLM
from minattn.transformer.embed import init_gpt2
from minattn.transformer.exlm import ExLM, repeated_mlm_batch
from minattn.transformer.state_graph import dag_alignment_loss, transition_matrix

PAPERS = (180,)

BOS, EOS, X, Y, MASK = range(5)
PAIRS = np.array([[BOS, X, Y, EOS], [BOS, Y, X, EOS]])
LIMIT_MLM = 2 * math.log(2)
D, CHUNKS, RESTARTS, STEPS, HOLD, RATE, BATCH = 32, 4, 8, 300, 100, 1e-2, 64

SYMBOLS, LENGTH, BLANK = 8, 10, 8
TEXT_STEPS, TEXT_RATE, TEXTS = 1000, 5e-3, 32
CASES = {"p50_k1": (0.5, 1), "p50_k4": (0.5, 4), "p06_k1": (0.5**4, 1)}


# ---- two words that exclude each other


class FreeGraph(nn.Module):
    """ExLM's head on 4k states, for BOS, two [MASK]s and EOS, whose vectors h and pos are free parameters.

    `vocab` counts BOS, EOS and the words.
    """

    def __init__(self, k: int, vocab: int = 4, *, rng: np.random.Generator) -> None:
        self.h, self.pos = (nn.Parameter(rng.standard_normal((4 * k, D)).astype(np.float32)) for _ in "hp")
        self.query, self.key = nn.Linear(2 * D, D, rng=rng), nn.Linear(2 * D, D, rng=rng)
        self.gate, self.words = nn.Linear(2 * D, CHUNKS, rng=rng), nn.Linear(D, vocab, rng=rng)

    def forward(self) -> tuple[Operand, Operand]:
        """ln p(y | u) (S, V) and ln E (S, S)."""
        f = cat([self.h, self.pos], -1)
        q, k = (permute(reshape(layer(f), (1, -1, CHUNKS, D // CHUNKS)), 0, 2, 1, 3)
                for layer in (self.query, self.key))
        E = transition_matrix(q, k, reshape(self.gate(f), (1, -1, CHUNKS)))
        return log_softmax(self.words(self.h), -1), E[0]

    def losses(self, labels: np.ndarray) -> Operand:
        """−ln P of each row of labels, (n,) for (n, 4)."""
        log_p, E = (expand(reshape(x, (1, *x.shape)), (len(labels), *x.shape)) for x in self())
        return dag_alignment_loss(log_p, labels, E, reduction="none")


@dataclass(frozen=True)
class Restart:
    """One training run: the graph, its joint loss at every step, and −ln P of a pair in expectation."""

    graph: FreeGraph
    losses: np.ndarray
    nll: float

    @property
    def trained(self) -> float:
        """Joint loss in the last 20 steps, by which restarts are chosen."""
        return float(self.losses[-20:].mean())


def fit_graph(k: int, rng: np.random.Generator, steps: int = STEPS, hold: int = 0,
              labels: np.ndarray = PAIRS, chances: Sequence[float] = (0.5, 0.5)) -> Restart:
    """Train a graph with k states a gap on batches of rows of `labels`, drawn with these chances.

    For the first `hold` steps, before the others, the output layer alone is trained: paths stay as they are
    while states come to differ in what they say. The loss of four labels is divided by four. A batch is known
    by the share of each row in it.
    """
    graph = FreeGraph(k, int(labels.max()) + 1, rng=rng)
    losses: list[float] = []
    for parameters, n in ((graph.words.parameters(), hold), (graph.parameters(), steps)):
        if n:
            losses += nn.train(graph, lambda graph, share: sum(graph.losses(labels) * share) / 4,
                               lambda rng: (rng.multinomial(BATCH, chances) / BATCH).astype(np.float32),
                               nn.Adam(parameters, lr=RATE), n, rng=rng, progress=False).losses
    with no_grad():
        nll = float(np.dot(raw(graph.losses(labels)), chances))
    return Restart(graph, 4 * np.array(losses), nll)


def restarts(k: int, seed: int, count: int = RESTARTS, hold: int = 0) -> list[Restart]:
    """Independent runs; those that hold the paths at first begin where those that do not begin."""
    return [fit_graph(k, rng, hold=hold) for rng in np.random.default_rng([seed, k]).spawn(count)]


def fit_encoder(seed: int, steps: int = STEPS) -> float:
    """−ln P of a pair, in expectation, for a whole ExLM, trained on BOS [MASK] [MASK] EOS."""
    rng = np.random.default_rng([seed, 99])
    config = Config(vocab=5, context=16, layers=1, heads=CHUNKS, d_model=D, position="rope")
    model = ExLM(config, 4, mask=MASK, bos=BOS, eos=EOS, rng=rng)
    ids, targets = np.full((BATCH, 4), MASK), np.full((BATCH, 4), -100)
    ids[:, 0], ids[:, 3] = BOS, EOS

    def batch(rng: np.random.Generator) -> np.ndarray:
        return np.concatenate([targets[:, :1], PAIRS[rng.integers(2, size=BATCH), 1:3], targets[:, :1]], 1)

    nn.train(model, lambda model, targets: model.loss(ids, targets), batch,
             nn.Adam(model.parameters(), lr=RATE), steps, rng=rng, progress=False)
    pairs = np.concatenate([targets[:2, :1], PAIRS[:, 1:3], targets[:2, :1]], 1)
    with no_grad():
        return 4 * model.loss(ids[:2], pairs).item()


def paths_in_use(graph: FreeGraph) -> float:
    """e to the entropy of which states (u, v) speak for the two gaps: 1 if it is always the same two."""
    with no_grad():
        E = np.exp(raw(graph()[1]).astype(np.float64))
    p = E[0, 1:-1, None] * E[1:-1, 1:-1] * E[1:-1, -1]  # BOS → u → v → EOS
    p = p[p > 0] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def coarse(losses: np.ndarray) -> list[float]:
    """Means of ten steps."""
    return losses.reshape(-1, 10).mean(1).round(4).tolist()


def pairs_finding(seed: int) -> Finding:
    """One state a gap against four, eight restarts each, and a whole model."""
    one, four, held = restarts(1, seed), restarts(4, seed), restarts(4, seed, hold=HOLD)
    best, worst = (pick(four, key=lambda r: r.trained) for pick in (min, max))
    return Finding(
        paper=180, seed=seed,
        claim="Of two words in a row that exclude each other, a masked language model (k = 1) pays 2 ln 2 in "
              "every run; a graph with k = 4 states a gap comes near ln 2 in the best of eight restarts.",
        numbers={"mlm_lowest": min(r.nll for r in one), "mlm_highest": max(r.nll for r in one),
                 "graph_best": best.nll, "graph_worst": worst.nll,
                 "below_one": len([r for r in four if r.nll < 1]),
                 "below_one_held": len([r for r in held if r.nll < 1]),
                 "at_two_ln_two": len([r for r in four if abs(r.nll - LIMIT_MLM) < 0.1]),
                 "paths_best": paths_in_use(best.graph), "paths_worst": paths_in_use(worst.graph),
                 "with_encoder": fit_encoder(seed)},
        bars=[("mlm_lowest", ">=", 1.35), ("mlm_highest", "<=", 1.45), ("graph_best", "<=", 0.85)],
        curves={f"k{k}_{i}": coarse(r.losses)
                for k, runs in (("1", one), ("4", four), ("4_held", held)) for i, r in enumerate(runs)})


# ---- repeated MLM


def posterior(inputs: np.ndarray, transitions: np.ndarray) -> np.ndarray:
    """P(token | all that is visible) (B, N, V) in a chain that starts anywhere, for `inputs` (B, N)."""
    B, N = inputs.shape
    V = len(transitions)
    seen = np.where((inputs == BLANK)[..., None], 1.0, inputs[..., None] == np.arange(V))
    past, future = np.ones((2, B, N, V))
    for n in range(1, N):
        past[:, n] = (past[:, n - 1] * seen[:, n - 1]) @ transitions
        past[:, n] /= past[:, n].sum(1, keepdims=True)
        future[:, -1 - n] = (future[:, -n] * seen[:, -n]) @ transitions.T
        future[:, -1 - n] /= future[:, -1 - n].sum(1, keepdims=True)
    p = past * seen * future
    return p / p.sum(2, keepdims=True)


def accuracies(model: MaskedLM, transitions: np.ndarray, k: int, p: float, rng: np.random.Generator,
               texts: int = 5000) -> dict[str, float]:
    """Share of masked copies, and of lost tokens, that the model fills in rightly, and the best possible."""
    inputs, targets = repeated_mlm_batch(rng, markov(rng, texts, LENGTH, transitions), BLANK, k, p)
    with no_grad():
        guess = np.concatenate([raw(model(part)).argmax(-1) for part in np.split(inputs, 10)])
    masked = (targets >= 0).reshape(-1, LENGTH, k)
    visible = np.where(masked, -1, inputs.reshape(masked.shape)).max(2)
    lost = visible < 0
    best = posterior(np.where(lost, BLANK, visible), transitions).argmax(-1)
    right = (guess == targets).reshape(masked.shape)
    optimal = best[..., None] == targets.reshape(masked.shape)
    of_lost = masked & lost[..., None]
    return {"all": right[masked].mean(), "lost": right[of_lost].mean(), "best_all": optimal[masked].mean(),
            "best_lost": optimal[of_lost].mean()}


def fit_repeated(p: float, k: int, transitions: np.ndarray, seed: int, steps: int = TEXT_STEPS) -> MaskedLM:
    """A masked language model of two layers, trained on texts in which every token stands k times."""
    rng = np.random.default_rng([seed, k, round(1e4 * p)])
    config = Config(vocab=SYMBOLS + 1, context=LENGTH * k, layers=2, heads=2, d_model=D)
    model = MaskedLM(config, rng=rng)
    init_gpt2(model, config.layers, rng, std=0.1)  # at width 32, with 0.02 half of the run goes by first
    nn.train(model, lambda model, batch: model.loss(*batch),
             lambda rng: repeated_mlm_batch(rng, markov(rng, TEXTS, LENGTH, transitions), BLANK, k, p),
             nn.AdamW(model.parameters(), lr=TEXT_RATE), steps, rng=rng, clip=1.0, progress=False,
             schedule=nn.schedule.linear(TEXT_RATE, steps=steps, warmup=20, floor=TEXT_RATE / 10))
    return model


def repeated_finding(seed: int) -> Finding:
    """The same share of [MASK] with one copy and with four, and the same share of lost tokens with one."""
    rng = np.random.default_rng(seed)
    transitions = random_transitions(rng, SYMBOLS, 0.3)
    numbers: dict[str, float] = {}
    for name, (p, k) in CASES.items():
        found = accuracies(fit_repeated(p, k, transitions, seed), transitions, k, p, rng)
        numbers |= {f"{kind}_{name}": float(value) for kind, value in found.items()}
    return Finding(
        paper=180, seed=seed, numbers=numbers, bars=[("all_p50_k4 - all_p50_k1", ">=", 0.1)],
        claim="On texts of a Markov chain with half of the input masked, masked copies are filled in better "
              "when every token stands four times than when it stands once.")


def run(seed: int) -> list[Finding]:
    """Both findings."""
    return [pairs_finding(seed), repeated_finding(seed)]
