"""Does a language model stop looking at its source, and does partial attention keep it looking?

(a) SmolLM2-135M-Instruct continues three prompts of 64 tokens greedily by 48. Attention on the source without
its first token (a sink), mean over layers and heads, of steps 40–48 against steps 1–8.

(b) A small language model and a partial attention model (PALM) learn to copy 32 symbols. Sensitivity
‖∂o_t/∂X‖_F of what a layer's attention adds at step t, to the source states X that the layer reads, at t = 32
against t = 1.

(c) The same measure where (b) leaves a question: before training, up to t = 128; and in models that have
learnt to continue Shakespeare's letters, for which what is near is nearly all that counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minattn import data, nn
from minattn.attention import causal, prefix
from minattn.autograd import Tensor, cat, no_grad
from minattn.findings import Finding
from minattn.transformer.config import Config
from minattn.transformer.gpt import GPT
from minattn.transformer.partial_attention import (
    PartialAttentionLM,
    source_attention_mass,
    source_sensitivity,
)
from minattn.transformer.pretrained import load

PAPERS = (100,)

SOURCE, NEW = 64, 48
"""Tokens of a prompt and of its continuation, claim (a)."""

PROMPTS = (
    "The harbour at Lystad freezes every winter, and for three months the only way to reach the island is "
    "on foot across the ice. Anna has carried the post that way since she was nineteen. She knows where the"
    " current keeps the ice thin, and she never leaves before the sun has cleared the church tower. This "
    "morning, halfway across, she stopped, because the wind had changed",
    "Bread needs four things: flour, water, salt and time. Most people who are new to baking worry about "
    "the first three and forget the last. A dough that rises slowly in a cold kitchen tastes of more than "
    "one that was hurried along beside the stove, and it keeps for longer. If you want to bake on Sunday "
    "morning, then begin on Saturday. First of all you should",
    "A sorting algorithm takes a list and puts its entries in order. The simplest ones compare neighbours "
    "and swap them until nothing is left to swap, which takes a number of steps that grows with the square "
    "of the length. Better ones divide the list in two, sort the halves, and merge them. To see why this is"
    " faster, imagine a list of a thousand numbers",
    "When the committee met in March, the bridge had been closed for eleven weeks. The engineers had found "
    "cracks in two of the steel beams, the ferry could take only six cars at a time, and shopkeepers on the"
    " eastern side said that they had lost half of their customers. The mayor opened the meeting with a "
    "question that nobody had expected from her that evening",
    "Bats find their way in the dark by listening. They call many times a second, in tones too high for us,"
    " and the echoes tell them how far away a wall or a moth is. The closer they come to their prey, the "
    "faster they call. Some moths have learned to hear these calls, and when a bat comes near they fold "
    "their wings and drop to the ground. Other moths",
    "Dear Mr Hallam, thank you for your letter of the ninth. I am sorry to hear that the clock which you "
    "bought from us in the autumn has stopped twice, and that it loses four minutes a day when it runs. Our"
    " workshop would be glad to look at it free of charge. Please pack it in the box in which it came, take"
    " out the pendulum and the two weights, and send it",
    "The last train to the coast left at ten past nine, and there were only three people in the carriage: a"
    " boy with a violin case, an old man who was asleep before the first station, and a woman who read the "
    "same page of her newspaper again and again. At the tunnel the lights went out. When they came on "
    "again, the violin case lay open on the seat",
    "Tomatoes are grown from seed in early spring, indoors, on a warm and bright windowsill. When the young"
    " plants have two pairs of leaves they are moved into pots of their own, deep enough that the stem is "
    "covered up to the lowest leaf, because roots grow from it. They go outside once the nights are mild. "
    "The most common mistakes that gardeners make are",
    "In 1854 a doctor in London drew a map. He marked each house in which someone had died of cholera, and "
    "he saw that the marks stood close together around one water pump. At that time most people believed "
    "that the disease came from bad air. He had the handle of the pump taken off, and the number of deaths "
    "fell. What the doctor had shown was that",
)
"""Three prompts for each of three seeds; their first 64 tokens are used."""

N, FAR = 32, 128
"""Length of the small models' source and target; the last step that is looked at before training."""

SYMBOLS, LETTERS = 16, 73
STEPS = (1, 2, 4, 8, 16, 24, 32)
TRAINING = 800
CONFIG = Config(vocab=SYMBOLS + 1, context=N + FAR, layers=2, heads=2, d_model=32)


class Pairs(NamedTuple):
    """Sources (B, M), what the target part reads (separator, t_1, …), and what it is to say (t_1, …)."""

    source: np.ndarray
    ids: np.ndarray
    targets: np.ndarray


def pairs(source: np.ndarray, target: np.ndarray, separator: int) -> Pairs:
    """Source and target as a model reads them; the separator starts the target."""
    first = np.full((len(source), 1), separator)
    return Pairs(source, np.concatenate([first, target[:, :-1]], 1), target)


def copying(rng: np.random.Generator, batch: int = 16) -> Pairs:
    """Random symbols, to be said again."""
    return pairs(*data.copy(rng, batch, N, SYMBOLS), separator=SYMBOLS)


def reading(rng: np.random.Generator, batch: int = 16) -> Pairs:
    """Letters of Shakespeare, to be continued."""
    windows, _ = data.batches(rng, shakespeare(), batch, 2 * N)
    return pairs(windows[:, :N], windows[:, N:], separator=LETTERS)


@functools.cache
def shakespeare() -> np.ndarray:
    """The text as numbers below `LETTERS`."""
    text = data.shakespeare()
    return data.CharVocabulary(text).encode(text)


# ---- (a) a trained model


def continuation(model: Any, prompts: Sequence[Sequence[int]], new: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy continuations (B, new), and attention on the source but for its first token, (B, new, layers).

    Entry t of the latter belongs to token t of the continuation as a query, with t + 1 target keys visible.
    """
    source = np.array(prompts)
    m, caches, names = source.shape[1], model.new_caches(), "blocks.*.attn.hook_weights"
    said, masses = [], []
    with no_grad():
        token = model(source, caches=caches).data[:, -1].argmax(-1)
        for _ in range(new):
            said.append(token)
            out, seen = model.run_with_cache(token[:, None], caches=caches, names=names)
            layers = [source_attention_mass(w, m, skip=1).mean((1, 2)) for w in seen.values()]
            masses.append(np.stack(layers, -1))
            token = out.data[:, -1].argmax(-1)
    return np.stack(said, 1), np.stack(masses, 1)


def attention_falls(seed: int) -> Finding:
    """Claim (a) on the three prompts of this seed."""
    model = load("smollm2")
    chosen = [PROMPTS[(3 * seed + k) % len(PROMPTS)] for k in range(3)]
    _, mass = continuation(model, [model.tokenizer.encode(text)[:SOURCE] for text in chosen], NEW)
    mean = mass.mean(-1)
    early, late = mean[:, :8].mean(-1), mean[:, 39:].mean(-1)
    ratios = {f"ratio_{k + 1}": late[k] / early[k] for k in range(3)}
    return Finding(
        paper=100,
        claim="In SmolLM2-135M-Instruct, which continues each of three prompts of 64 tokens greedily, "
              "attention on the source without its first token at steps 40 to 48 is at most 0.65 of that at "
              "steps 1 to 8.",
        numbers={**ratios, "early": early.mean(), "late": late.mean(),
                 "layers_falling": float((mass[:, 39:].mean((0, 1)) < mass[:, :8].mean((0, 1))).mean())},
        bars=[(name, "<=", 0.65) for name in ratios], seed=seed,
        curves={f"mass_{k + 1}": mean[k] for k in range(3)})


# ---- (b), (c) small models


class Measured(NamedTuple):
    """What a batch of pairs shows of a model.

    Attributes
    ----------
    sensitivity : (layers, steps)
        Root of the mean square over the sequences.
    mass : list of N
        Self-attention on the source at every step, mean over sequences, layers and heads.
    logit : float
        The largest absolute logit of any query of the target.
    """

    sensitivity: np.ndarray
    mass: list[float]
    logit: float

    @property
    def relative(self) -> list[float]:
        """Norm of the Jacobians of all layers together, relative to the first step."""
        together = np.sqrt((self.sensitivity**2).sum(0))
        return (together / together[0]).tolist()


def measure(model: GPT | PartialAttentionLM, batch: Pairs, steps: Sequence[int]) -> Measured:
    """Sensitivity at the steps asked for, source mass and logits on a batch."""
    whole, m = not isinstance(model, PartialAttentionLM), batch.source.shape[1]
    args = (np.concatenate(batch[:2], 1),) if whole else batch[:2]
    _, seen = model.run_with_cache(*args, names=("blocks.*.hook_resid_pre", "blocks.*.attn.hook_scores",
                                                 "blocks.*.attn.hook_weights"))
    how = {"mask_mod": causal} if whole else {"source": m, "mask_mod": prefix(m)}
    squares = [[source_sensitivity(added(block, x[m:], how), x[:m], [t - 1 for t in steps]) ** 2
                for x in seen[f"blocks.{n}.hook_resid_pre"]] for n, block in enumerate(model.blocks)]
    scores, weights = (np.stack([x[:, :, m:] for name, x in seen.items() if name.endswith(kind)])
                       for kind in ("scores", "weights"))
    return Measured(np.sqrt(np.mean(squares, 1)), source_attention_mass(weights, m).mean((0, 1, 2)).tolist(),
                    float(np.abs(scores[np.isfinite(scores)]).max()))


def added(block: nn.Module, target: np.ndarray, how: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The function from source states (R, m, D) to the target's stream after the attention of this block.

    It differs from what the attention adds by the stream before it, which does not depend on the source.
    """

    def f(source: Tensor) -> Tensor:
        kept: list[Tensor] = []
        x = cat([source, Tensor(np.repeat(target[None], len(source), 0))], 1)
        with block.hooked({"hook_resid_mid": kept.append}):
            block(x, **how)
        return kept[0][:, source.shape[1]:]

    return f


def language_model_loss(model: GPT, batch: Pairs) -> Tensor:
    """Cross-entropy of the target alone, as the partial attention model has."""
    nothing = np.full(batch.source.shape, -100)
    return model.loss(np.concatenate(batch[:2], 1), np.concatenate([nothing, batch.targets], 1))


def partial_loss(model: PartialAttentionLM, batch: Pairs) -> Tensor:
    """The model's own loss."""
    return model.loss(*batch)


KINDS: dict[str, tuple[Any, Any]] = {"lm": (GPT, language_model_loss),
                                     "palm": (PartialAttentionLM, partial_loss)}


def fresh(kind: str, config: Config, seed: int) -> GPT | PartialAttentionLM:
    """An untrained model."""
    return KINDS[kind][0](config, rng=np.random.default_rng([seed, 0]))


def trained(kind: str, config: Config, task: Callable[[np.random.Generator], Pairs], seed: int,
            steps: int = TRAINING) -> tuple[GPT | PartialAttentionLM, nn.History]:
    """A model after `steps` of AdamW on its task."""
    model, rate = fresh(kind, config, seed), 3e-3
    optimizer = nn.AdamW(nn.decay_groups(model.parameters(), 0.1), lr=rate)
    schedule = nn.schedule.cosine(rate, steps=steps, warmup=min(30, steps // 4), floor=rate / 10)
    history = nn.train(model, KINDS[kind][1], task, optimizer, steps, rng=np.random.default_rng([seed, 1]),
                       schedule=schedule, clip=1.0, title=f"training {kind}")
    return model, history


def accuracy(model: GPT | PartialAttentionLM, batch: Pairs) -> float:
    """Share of target tokens that are the most likely ones."""
    with no_grad():
        whole = not isinstance(model, PartialAttentionLM)
        logits = model(np.concatenate(batch[:2], 1)) if whole else model(*batch[:2])
    return float((logits.data[:, -batch.ids.shape[1]:].argmax(-1) == batch.targets).mean())


def copy_models(seed: int) -> Finding:
    """Claim (b)."""
    test = copying(np.random.default_rng([seed, 2]), 64)
    numbers: dict[str, float] = {}
    curves: dict[str, Sequence[float]] = {"steps": STEPS}
    few = Pairs(*(part[:4] for part in test))
    for kind in KINDS:
        model, _ = trained(kind, CONFIG, copying, seed)
        found = measure(model, few, STEPS)
        numbers |= {f"{kind}_ratio": found.relative[-1], f"{kind}_logit": found.logit,
                    f"{kind}_after_2": found.relative[-1] / found.relative[1],
                    f"{kind}_accuracy": accuracy(model, test)}
        curves |= {f"{kind}_relative": found.relative, f"{kind}_mass": found.mass}
    return Finding(
        paper=100,
        claim="In a small language model that has learnt to copy 32 symbols, sensitivity to the source at "
              "t = 32 is below 0.5 of that at t = 1, and in a partial attention model the ratio is at least "
              "1.5 times as large.",
        numbers=numbers,
        bars=[("lm_ratio", "<", 0.5), ("palm_ratio / lm_ratio", ">=", 1.5)], seed=seed, curves=curves,
        found="A language model that has learnt to copy does not degenerate: its logits have grown so "
              "far that the bounds allow any mass, and from t = 2 to t = 32 sensitivity keeps most of its "
              "size in both models. The ratio to t = 1 depends on how sharply the first step happens to "
              "attend, and is not reliably larger with partial attention.")


def other_models(seed: int) -> Finding:
    """What (b) leaves open: models before training, and models of text."""
    rng = np.random.default_rng([seed, 3])
    source, target = rng.integers(0, SYMBOLS, (2, N)), rng.integers(0, SYMBOLS, (2, FAR))
    far, steps = pairs(source, target, SYMBOLS), (*STEPS, 64, FAR)
    text = reading(rng, 4)
    numbers: dict[str, float] = {}
    curves: dict[str, Sequence[float]] = {"steps": STEPS, "start_steps": steps}
    for kind in KINDS:
        start = measure(fresh(kind, CONFIG, seed), far, steps)
        numbers |= {f"{kind}_start": start.relative[len(STEPS) - 1], f"{kind}_far": start.relative[-1],
                    f"{kind}_start_logit": start.logit}
        curves |= {f"{kind}_start": start.relative, f"{kind}_start_mass": start.mass}
        model, history = trained(kind, replace(CONFIG, vocab=LETTERS + 1), reading, seed)
        found = measure(model, text, STEPS)
        numbers |= {f"{kind}_text": found.relative[-1], f"{kind}_text_loss": history.recent()}
        curves[f"{kind}_text"] = found.relative
    return Finding(
        paper=100,
        claim="Before training, sensitivity at t = 128 is below 0.5 of that at t = 1 in the language model, "
              "and the ratio is at least 1.5 times as large in the partial attention model; after training "
              "on text it is below 0.5 at t = 32 in both.",
        numbers=numbers,
        bars=[("lm_far", "<", 0.5), ("palm_far / lm_far", ">=", 1.5), ("lm_text", "<", 0.5),
              ("palm_text", "<", 0.5)], seed=seed, curves=curves)


def run(seed: int) -> list[Finding]:
    """The three findings."""
    return [attention_falls(seed), copy_models(seed), other_models(seed)]
