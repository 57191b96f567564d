"""Measures of how good an output is; the well-known ones from the libraries that everybody compares with.

They are imported when first used; ``pip install sacrebleu rouge-score rapidfuzz scikit-learn`` gets them.
"""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from minattn.autograd.engine import Array, raw

__all__ = ["average_precision", "bleu", "edit_distance", "error_rate", "mean_iou", "roc_auc", "rouge"]


def _library(module: str, package: str, metric: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise ImportError(f"{metric} needs the package {package}: pip install {package}") from e


def _texts(hypotheses: Sequence[str], references: Sequence[Any]) -> None:
    if isinstance(hypotheses, str) or isinstance(references, str):
        raise TypeError("hypotheses and references: expected lists of texts, got one text")
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"references: expected one for each hypothesis (≥ 1), got {len(references)} "
                         f"for {len(hypotheses)}")


def bleu(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """BLEU of a corpus in percent, by sacreBLEU with its default tokens ("13a").

    Parameters
    ----------
    hypotheses : list of str
    references : list of str, or of lists of str
        The translation(s) that each hypothesis may be like; the same number for each.
    """
    _texts(hypotheses, references)
    several = [[r] if isinstance(r, str) else list(r) for r in references]
    if len({len(r) for r in several}) != 1:
        raise ValueError(f"references: expected equally many for each, got {[len(r) for r in several]}")
    streams = [list(stream) for stream in zip(*several, strict=True)]
    return _library("sacrebleu", "sacrebleu", "bleu").corpus_bleu(list(hypotheses), streams).score


def rouge(hypotheses: Sequence[str], references: Sequence[str],
          kinds: Sequence[str] = ("rouge1", "rouge2", "rougeL"), stem: bool = False) -> dict[str, float]:
    """Mean F-measure in [0, 1] of the words (pairs, longest common subsequence) shared with the reference.

    Parameters
    ----------
    kinds : sequence of str
        "rouge1", "rouge2", …, "rougeL", "rougeLsum".
    stem : bool
        Compare words without their endings (English).
    """
    _texts(hypotheses, references)
    library = _library("rouge_score.rouge_scorer", "rouge-score", "rouge")
    scorer = library.RougeScorer(list(kinds), use_stemmer=stem)
    scores = [scorer.score(r, h) for h, r in zip(hypotheses, references, strict=True)]
    return {kind: float(np.mean([s[kind].fmeasure for s in scores])) for kind in kinds}


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and replacements that turn `a` into `b`: texts, lists of words or ids."""
    return _library("rapidfuzz.distance.Levenshtein", "rapidfuzz", "edit_distance").distance(a, b)


def error_rate(hypotheses: Sequence[Sequence[Hashable]],
               references: Sequence[Sequence[Hashable]]) -> float:
    """Edits per token of the references, Σ distance / Σ length: of words, the word error rate."""
    if len(hypotheses) != len(references):
        raise ValueError(f"references: expected one for each hypothesis, got {len(references)} "
                         f"for {len(hypotheses)}")
    length = sum(len(r) for r in references)
    if length == 0:
        raise ValueError("references: all are empty, so there is no rate")
    return sum(edit_distance(h, r) for h, r in zip(hypotheses, references, strict=True)) / length


def _binary(labels: Array, scores: Array) -> tuple[Array, Array]:
    labels, scores = np.asarray(raw(labels)), np.asarray(raw(scores))
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"scores: expected one for each label, got {scores.shape} for {labels.shape}")
    if not np.isin(labels, (0, 1)).all() or len(np.unique(labels)) != 2:
        raise ValueError(f"labels: expected both 0 and 1 and nothing else, got {np.unique(labels)}")
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers")
    return labels, scores


def roc_auc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve: how likely a positive scores above a negative, ties counting half."""
    labels, scores = _binary(labels, scores)
    library = _library("sklearn.metrics", "scikit-learn", "roc_auc")
    return float(library.roc_auc_score(labels, scores))


def average_precision(labels: Array, scores: Array) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over thresholds: the mean precision at which each further positive is found."""
    labels, scores = _binary(labels, scores)
    library = _library("sklearn.metrics", "scikit-learn", "average_precision")
    return float(library.average_precision_score(labels, scores))


def mean_iou(predicted: Array, target: Array, classes: int, *, ignore_index: int | None = None) -> float:
    """Mean over classes of |predicted ∩ target| / |predicted ∪ target|, without classes that do not occur.

    Parameters
    ----------
    predicted, target : integer arrays of one shape
        The class of each pixel.
    classes : int
        C; the classes are 0 … C − 1.
    ignore_index : int, optional
        Pixels with this target do not count.
    """
    predicted, target = np.asarray(raw(predicted)).reshape(-1), np.asarray(raw(target)).reshape(-1)
    if predicted.shape != target.shape:
        raise ValueError(f"predicted: expected {target.size} classes as in target, got {predicted.size}")
    counts = np.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    predicted, target = predicted[counts], target[counts]
    for name, x in (("predicted", predicted), ("target", target)):
        if x.dtype.kind not in "iu" or (x.size and not (x.min() >= 0 and x.max() < classes)):
            raise ValueError(f"{name}: expected integers in [0, {classes})")
    both = np.bincount(target[predicted == target], minlength=classes)
    either = np.bincount(predicted, minlength=classes) + np.bincount(target, minlength=classes) - both
    if not either.any():
        raise ValueError("target: no pixel counts, so there is no mean")
    return float((both[either > 0] / either[either > 0]).mean())
