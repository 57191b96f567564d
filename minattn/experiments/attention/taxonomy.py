"""Is a taxonomy of attention something that can be checked? Declared labels against probed behaviour.

For every registered mechanism the probe infers four labels from random inputs and parameters, which each seed
draws anew, and they are compared with its card. The comparison must be able to fail, so two kinds of wrong
cards go through it as well: every card with one label, chosen at random, exchanged for a wrong one, and right
cards whose code has been broken in the way that the label speaks of.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from statistics import fmean, mode

import numpy as np

from minattn.attention import (
    AXES,
    AttentionCard,
    CoAttention,
    HierarchicalAttention,
    MultiDimAttention,
    Step,
    attend,
    attention,
    coverage,
    disagreements,
    probe_taxonomy,
    registered_attention,
)
from minattn.autograd import Tensor, reshape, roll
from minattn.findings import Finding

PAPERS = (1,)


def mask_dropped(x: Tensor, y: Tensor, rng: np.random.Generator) -> Step:
    """Sliding-window attention whose mask has been forgotten."""
    return Step(attention, x, x, x)


def softmax_for_draw(x: Tensor, y: Tensor, rng: np.random.Generator) -> Step:
    """Hard attention that averages instead of drawing."""
    return Step(partial(attend, distribution="softmax"), x, y, y)


def keys_from_elsewhere(x: Tensor, y: Tensor, rng: np.random.Generator) -> Step:
    """Self-attention that was handed the other sequence as its keys and values."""
    return Step(attention, x, y, y)


def no_affinity(x: Tensor, y: Tensor, rng: np.random.Generator) -> list[Step]:
    """Co-attention with W_b = 0: each side chooses without a look at the other."""
    net = CoAttention(4, 4, rng=rng).to(np.float64)
    net.affinity.weight.data = np.zeros((4, 4))
    return net.steps(x[:, 0], y[:, 0])


def sentences_skipped(x: Tensor, y: Tensor, rng: np.random.Generator) -> list[Step]:
    """Hierarchical attention whose upper level reads the first words, not the sentences' sums."""
    words, upper = HierarchicalAttention(4, rng=rng).to(np.float64).steps(reshape(x, (1, 3, 4, 4)))
    return [words, replace(upper, k=upper.k.detach(), v=x[:, :, ::4])]


def features_tied(x: Tensor, y: Tensor, rng: np.random.Generator) -> Step:
    """Multi-dimensional attention in which every feature has the same scores."""
    net = MultiDimAttention(4, 4, 4, rng=rng).to(np.float64)
    net.scores.weight.data = np.tile(net.scores.weight.data[:1], (4, 1))
    return Step(net, x, y, y)


def views_misaligned(x: Tensor, y: Tensor, rng: np.random.Generator) -> Step:
    """A meta-embedding that takes its second view from the next position."""
    views = registered_attention()["meta-embedding"].wiring(x, y, rng)[0]
    shift = np.arange(3)[None, None, :, None] == 1
    moved = roll(views.v, -1, 0) * shift + views.v * ~shift
    return replace(views, k=moved, v=moved)


PLANTED = (
    ("sliding-window self-attention", mask_dropped, "positions"),
    ("hard attention", softmax_for_draw, "positions"),
    ("multi-head self-attention", keys_from_elsewhere, "sequences"),
    ("co-attention", no_affinity, "sequences"),
    ("hierarchical attention", sentences_skipped, "levels"),
    ("multi-dimensional attention", features_tied, "representations"),
    ("meta-embedding", views_misaligned, "representations"),
)
"""Card, its mechanism with a mistake planted, and the axis on which the mistake must show."""


def mislabelled(card: AttentionCard, rng: np.random.Generator) -> tuple[AttentionCard, str]:
    """The card with one label replaced by another of its axis, and the axis."""
    axis = str(rng.choice(list(AXES)))
    labels = {**card.labels(), axis: str(rng.choice([v for v in AXES[axis] if v != getattr(card, axis)]))}
    return AttentionCard(card.name, card.wiring, **labels), axis


def run(seed: int) -> Finding:
    """Probe the whole registry, then everything that must be flagged."""
    cards, rng = registered_attention(), np.random.default_rng(seed)
    probed = {name: probe_taxonomy(card.wiring, seed) for name, card in cards.items()}
    agree = {axis: fmean(probed[name][axis] == getattr(card, axis) for name, card in cards.items())
             for axis in AXES}
    common = {axis: mode(getattr(card, axis) for card in cards.values()) for axis in AXES}

    wrong = [mislabelled(card, rng) for card in cards.values()]
    flagged = [set(disagreements(card, seed)) == {axis} for card, axis in wrong]
    planted = [axis in disagreements(replace(cards[name], wiring=broken), seed)
               for name, broken, axis in PLANTED]
    counts = coverage(list(cards.values()))

    return Finding(
        paper=1,
        claim="A taxonomy of attention can be checked: probed labels equal the declared card of every "
              "mechanism, wrong cards and broken mechanisms are flagged, and every value of every axis has "
              "at least two mechanisms.",
        numbers={"mechanisms": len(cards),
                 "agreement": fmean(probed[name] == card.labels() for name, card in cards.items()),
                 "constant_guess": fmean(common == card.labels() for card in cards.values()),
                 "mislabelled": len(flagged), "mislabelled_flagged": fmean(flagged),
                 "broken": len(planted), "broken_flagged": fmean(planted),
                 "fewest_of_a_value": min(n for values in counts.values() for n in values.values()),
                 **{f"agreement_{axis}": share for axis, share in agree.items()}},
        bars=[("agreement", "==", 1), ("agreement", ">", "constant_guess"), ("mislabelled_flagged", "==", 1),
              ("broken_flagged", "==", 1), ("fewest_of_a_value", ">=", 2)],
        seed=seed)
