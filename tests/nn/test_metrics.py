"""Metrics against their definitions written out, the libraries' own answers, and bad input."""

import subprocess
import sys

import numpy as np
import pytest

from minattn.autograd import Tensor
from minattn.nn import metrics

HYPOTHESES = ["the cat sat on the mat .", "a dog , it runs !"]
REFERENCES = ["the cat is on the mat .", "a dog is running !"]


@pytest.fixture
def rng():
    return np.random.default_rng(41)


def bleu_by_counting(hypotheses, references):
    """exp of the mean ln precision of 1- to 4-grams, times the brevity penalty; sacreBLEU smooths zeros."""
    logs, h_len, r_len = [], 0, 0
    for n in range(1, 5):
        hits = total = 0
        for h, r in zip(hypotheses, references, strict=True):
            grams = [[tuple(t[i : i + n]) for i in range(len(t) - n + 1)] for t in (h.split(), r.split())]
            hits += sum(min(grams[0].count(g), grams[1].count(g)) for g in set(grams[0]))
            total += len(grams[0])
        assert hits, "the smoothing of zeros is sacreBLEU's own affair"
        logs.append(np.log(hits / total))
    h_len, r_len = (sum(len(t.split()) for t in texts) for texts in (hypotheses, references))
    return 100 * np.exp(np.mean(logs)) * np.exp(min(0, 1 - r_len / h_len))


def test_bleu():
    pytest.importorskip("sacrebleu")
    longer = [*HYPOTHESES, "one two three four five six"]
    references = [*REFERENCES, "one two three four five six seven"]
    assert metrics.bleu(longer, references) == pytest.approx(bleu_by_counting(longer, references))
    assert metrics.bleu(REFERENCES, REFERENCES) == pytest.approx(100)
    several = [["no match at all", r] for r in references]
    assert metrics.bleu(longer, several) >= metrics.bleu(longer, references)


def test_rouge():
    pytest.importorskip("rouge_score")
    got = metrics.rouge(["the cat sat"], ["the big cat sat down"])
    # 3 of 3 words found, 3 of 5 covered; 1 of 2 pairs found, 1 of 4 covered; a common subsequence of 3
    assert got == pytest.approx({"rouge1": 0.75, "rouge2": 2 * 0.5 * 0.25 / 0.75, "rougeL": 0.75})
    assert metrics.rouge(["runs"], ["running"], ["rouge1"]) == {"rouge1": 0.0}
    assert metrics.rouge(["runs"], ["running"], ["rouge1"], stem=True) == {"rouge1": 1.0}
    assert metrics.rouge(["a b", "c d"], ["a b", "x y"], ["rouge1"]) == {"rouge1": 0.5}


def edit_distance_by_recursion(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(edit_distance_by_recursion(a[1:], b) + 1, edit_distance_by_recursion(a, b[1:]) + 1,
               edit_distance_by_recursion(a[1:], b[1:]) + (a[0] != b[0]))


def test_edit_distance(rng):
    pytest.importorskip("rapidfuzz")
    seen = set()
    for _ in range(60):
        a, b = (rng.integers(3, size=rng.integers(0, 6)) for _ in range(2))
        want = edit_distance_by_recursion(list(a), list(b))
        text = ["".join("xyz"[i] for i in ids) for ids in (a, b)]
        assert metrics.edit_distance(a, b) == want == metrics.edit_distance(*text)
        seen.add(want)
    assert len(seen) > 3
    assert metrics.edit_distance("kitten", "sitting") == 3
    assert metrics.edit_distance("the cat".split(), "the big cat".split()) == 1


def test_error_rate():
    pytest.importorskip("rapidfuzz")
    assert metrics.error_rate([[1, 2], [3]], [[1, 2, 3], [4]]) == 0.5
    assert metrics.error_rate(["abc"], ["abc"]) == 0.0


def test_roc_auc(rng):
    pytest.importorskip("sklearn")
    labels, scores = rng.integers(2, size=50), rng.integers(6, size=50) / 5  # many ties
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert metrics.roc_auc(labels, Tensor(scores)) == pytest.approx(np.mean(pairs))
    assert metrics.roc_auc([0, 1], [0.1, 0.2]) == 1.0 and metrics.roc_auc([1, 0], [0.1, 0.2]) == 0.0


def test_average_precision(rng):
    pytest.importorskip("sklearn")
    labels, scores = rng.integers(2, size=40), rng.permutation(40)
    ordered = labels[np.argsort(-scores)]
    precisions = [ordered[: i + 1].mean() for i in range(40) if ordered[i]]
    assert metrics.average_precision(labels, scores) == pytest.approx(np.mean(precisions))


def test_mean_iou(rng):
    target, predicted = rng.integers(4, size=(2, 5, 6)), rng.integers(3, size=(2, 5, 6))
    target[target == 1] = 0  # class 1 is only predicted; class 4 occurs nowhere
    ious = []
    for c in range(4):
        a, b = {(*i,) for i in np.argwhere(target == c)}, {(*i,) for i in np.argwhere(predicted == c)}
        ious.append(len(a & b) / len(a | b))
    assert ious[1] == 0 and len(set(ious)) > 2
    assert metrics.mean_iou(predicted, target, 5) == pytest.approx(np.mean(ious))
    sklearn = pytest.importorskip("sklearn.metrics")
    want = sklearn.jaccard_score(target.ravel(), predicted.ravel(), average="macro")
    assert metrics.mean_iou(predicted, target, 4) == pytest.approx(want)


def test_mean_iou_of_single_pixels():
    assert metrics.mean_iou([0, 1, 2], [0, 1, 1], 3) == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert metrics.mean_iou(np.array([0, 1], np.uint8), np.array([0, 1], np.uint8), 2) == 1.0


def test_mean_iou_ignores():
    target, predicted = np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0])
    assert metrics.mean_iou(predicted, target, 2, ignore_index=255) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"target: expected integers in \[0, 2\)"):
        metrics.mean_iou(predicted, target, 2)
    with pytest.raises(ValueError, match=r"^target: no pixel counts"):
        metrics.mean_iou([0], [255], 2, ignore_index=255)


@pytest.mark.parametrize("name, arguments, package", [
    ("bleu", (HYPOTHESES, REFERENCES), "sacrebleu"),
    ("rouge", (HYPOTHESES, REFERENCES), "rouge-score"),
    ("edit_distance", ("a", "b"), "rapidfuzz"),
    ("roc_auc", ([0, 1], [0, 1]), "scikit-learn"),
    ("average_precision", ([0, 1], [0, 1]), "scikit-learn"),
])
def test_a_missing_library_is_named(monkeypatch, name, arguments, package):
    gone = ("sacrebleu", "rouge_score", "rapidfuzz", "sklearn")
    for module in [m for m in sys.modules if m.split(".")[0] in gone]:
        monkeypatch.delitem(sys.modules, module)
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] in gone:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(ImportError, match=f"^{name} needs the package {package}: pip install {package}$"):
        getattr(metrics, name)(*arguments)


def test_the_libraries_are_imported_only_when_used():
    code = "import sys, minattn.nn.metrics; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "minattn.nn.metrics" in loaded
    assert not {"sacrebleu", "rouge_score", "rapidfuzz", "sklearn"} & set(loaded)


@pytest.mark.parametrize("call, error, message", [
    (lambda: metrics.bleu("text", ["text"]), TypeError, "^hypotheses and references: expected lists"),
    (lambda: metrics.bleu(["a"], []), ValueError, "references: expected one for each hypothesis"),
    (lambda: metrics.bleu([], []), ValueError, "references: "),
    (lambda: metrics.bleu(["a", "b"], [["a", "b"], ["c"]]), ValueError, r"equally many .* got \[2, 1\]"),
    (lambda: metrics.rouge(["a"], ["a", "b"]), ValueError, "references: "),
    (lambda: metrics.error_rate(["a"], []), ValueError, "references: "),
    (lambda: metrics.error_rate(["a"], [""]), ValueError, "^references: all are empty"),
    (lambda: metrics.roc_auc([0, 1], [1.0]), ValueError, r"scores: expected one for each label, got \(1,\)"),
    (lambda: metrics.roc_auc([1, 1], [1.0, 2.0]), ValueError, "labels: expected both 0 and 1"),
    (lambda: metrics.roc_auc([0, 2], [1.0, 2.0]), ValueError, r"labels: .*got \[0 2\]"),
    (lambda: metrics.average_precision([0, 1], [1.0, np.nan]), ValueError, "^scores: expected finite"),
    (lambda: metrics.mean_iou([0, 1], [0], 2), ValueError, "predicted: expected 1 classes"),
    (lambda: metrics.mean_iou([0.5], [0], 2), ValueError, "predicted: expected integers"),
    (lambda: metrics.mean_iou([-1], [0], 2), ValueError, "predicted: expected integers"),
    (lambda: metrics.mean_iou([2], [0], 2), ValueError, "predicted: expected integers"),
])
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
