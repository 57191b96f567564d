"""Every loss against its PyTorch twin: values, gradients with random cotangents, reductions; bad input."""

import numpy as np
import pytest

from minattn.autograd import Tensor, log_softmax
from minattn.nn import losses

torch = pytest.importorskip("torch")
F = torch.nn.functional


@pytest.fixture
def rng():
    return np.random.default_rng(20)


REDUCTIONS = ["none", "sum", "mean"]
SHAPES = [(1,), (7,), (1, 1), (3, 5), (2, 1, 4)]


def agree(ours, theirs, *points, rng, tolerance=1e-10, **options):
    """Run both at the same points; compare values and, under one random cotangent, all gradients."""
    a = [Tensor(x.copy(), requires_grad=True) for x in points]
    b = [torch.tensor(x, requires_grad=True) for x in points]
    out, want = ours(*a, **options), theirs(*b, **options)
    u = rng.standard_normal(out.shape)
    out.backward(u)
    want.backward(torch.tensor(u))
    assert out.shape == tuple(want.shape)
    np.testing.assert_allclose(out.data, want.detach().numpy(), rtol=tolerance, atol=tolerance)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x.grad, y.grad.numpy(), rtol=tolerance, atol=tolerance)
    return a


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_mse(rng, shape, reduction):
    x, y = rng.standard_normal((2, *shape))
    agree(losses.mse_loss, F.mse_loss, x, y, rng=rng, reduction=reduction)


def test_losses_of_nothing(rng):
    nothing = np.zeros((0, 3))
    for reduction in ("none", "sum"):
        agree(losses.mse_loss, F.mse_loss, nothing, nothing, rng=rng, reduction=reduction)
    with pytest.raises(ValueError, match="nothing to average"):  # NaN in PyTorch
        losses.mse_loss(nothing, nothing)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_binary_cross_entropy(rng, shape, weighted, reduction):
    x, y = 3 * rng.standard_normal(shape), rng.random(shape)
    w = rng.random(shape[-1:]) + 0.5 if weighted else None

    def ours(x, **o):
        return losses.binary_cross_entropy_with_logits(x, y, pos_weight=w, **o)

    weight = None if w is None else torch.tensor(w)

    def theirs(x, **o):
        return F.binary_cross_entropy_with_logits(x, torch.tensor(y), pos_weight=weight, **o)

    agree(ours, theirs, x, rng=rng, reduction=reduction)


def test_binary_cross_entropy_is_stable():
    x = np.array([-800.0, 800.0, -50.0, 50.0])
    y = np.array([1.0, 0.0, 0.0, 1.0])
    loss = losses.binary_cross_entropy_with_logits(Tensor(x, True), y, reduction="none")
    np.testing.assert_allclose(loss.data, [800, 800, np.exp(-50), np.exp(-50)], rtol=1e-12)


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batchmean"])
@pytest.mark.parametrize("log_target", [False, True])
def test_kl(rng, log_target, reduction):
    q, p = (np.asarray(log_softmax(rng.standard_normal((4, 6)), -1)) for _ in range(2))
    if not log_target:
        p = np.exp(p)
    agree(losses.kl_div, F.kl_div, q, p, rng=rng, reduction=reduction, log_target=log_target)


def test_kl_takes_zero_log_zero_as_zero(rng):
    p = np.array([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]])
    q = np.asarray(log_softmax(rng.standard_normal(p.shape), -1))

    def ours(q, **o):
        return losses.kl_div(q, p, **o)

    def theirs(q, **o):
        return F.kl_div(q, torch.tensor(p), **o)

    agree(ours, theirs, q, rng=rng, reduction="batchmean")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_triplet(rng, p, reduction):
    points = rng.standard_normal((3, 6, 4))
    points[2, :3] += 9  # far negatives: the hinge is at rest
    points[1, 3:] += 9  # far positives: it pulls
    grads = agree(losses.triplet_margin_loss, F.triplet_margin_loss, *points, rng=rng, reduction=reduction,
                  p=p, margin=0.7)
    rest = np.abs(grads[0].grad).sum(1) == 0
    assert rest.any() and not rest.all(), "the test must see both sides of the hinge"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_margin_ranking(rng, reduction):
    x, y = rng.standard_normal((2, 40))
    sign = np.where(rng.random(40) < 0.5, 1.0, -1.0)

    def ours(x, y, **o):
        return losses.margin_ranking_loss(x, y, sign, **o)

    def theirs(x, y, **o):
        return F.margin_ranking_loss(x, y, torch.tensor(sign), **o)

    (a, _) = agree(ours, theirs, x, y, rng=rng, reduction=reduction, margin=0.3)
    assert (a.grad == 0).any() and (a.grad != 0).any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 3)])
def test_multi_margin(rng, shape, p, reduction):
    x, target = 2 * rng.standard_normal(shape), rng.integers(shape[1], size=shape[0])

    def ours(x, **o):
        return losses.multi_margin_loss(x, target, **o)

    def theirs(x, **o):
        return F.multi_margin_loss(x, torch.tensor(target), **o)

    agree(ours, theirs, x, rng=rng, reduction=reduction, p=p, margin=0.8)


@pytest.mark.parametrize("shape", [(1, 3), (2, 5), (7, 4)])
def test_info_nce(rng, shape):
    def theirs(a, b, temperature):
        s = F.normalize(a) @ F.normalize(b).T / temperature
        target = torch.arange(len(a))
        return (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2

    agree(losses.info_nce, theirs, *rng.standard_normal((2, *shape)), rng=rng, temperature=0.2)


def test_info_nce_wants_the_diagonal(rng):
    a = rng.standard_normal((6, 16))
    assert losses.info_nce(a, a) < 0.1 < losses.info_nce(a, np.roll(a, 1, 0))


@pytest.mark.filterwarnings("ignore:reduction")
def test_defaults_are_pytorchs(rng):
    """Margin, power, ε and reduction, when nothing is said; targets may be lists."""
    x, y, z = rng.standard_normal((3, 6, 4))
    p, sign, classes = rng.random((6, 4)), np.sign(z), [0, 3, 1, 1, 2, 0]
    q = np.asarray(log_softmax(y, -1))
    for name, arguments in [("mse_loss", (x, y)), ("binary_cross_entropy_with_logits", (x, p)),
                            ("kl_div", (q, p)), ("triplet_margin_loss", (x, z, x + y)),
                            ("margin_ranking_loss", (x, y, sign)), ("multi_margin_loss", (x, classes))]:
        want = getattr(F, name)(*map(torch.tensor, arguments)).item()
        assert want != 0
        assert getattr(losses, name)(*arguments) == pytest.approx(want, rel=1e-12), name


def test_triplets_of_any_number_of_axes(rng):
    agree(losses.triplet_margin_loss, F.triplet_margin_loss, *rng.standard_normal((3, 2, 5, 4)), rng=rng,
          reduction="none", margin=2.0)


# ---- bad input

X, Y = np.zeros((2, 3)), np.zeros((2, 3))


@pytest.mark.parametrize("call, message", [
    (lambda: losses.mse_loss(X, Y[:, :1]), r"target: expected the shape of input, \(2, 3\), got \(2, 1\)"),
    (lambda: losses.mse_loss(X, Y, reduction="avg"), "reduction: .*got 'avg'"),
    (lambda: losses.binary_cross_entropy_with_logits(X, Y + 1.5), r"target: expected values in \[0, 1\]"),
    (lambda: losses.binary_cross_entropy_with_logits(X, Y * np.nan), r"target: expected values in \[0, 1\]"),
    (lambda: losses.kl_div(X, Y - 1), "target: expected probabilities"),
    (lambda: losses.info_nce(X, Y + 1, temperature=0), "temperature: .*got 0"),
    (lambda: losses.info_nce(X[0], Y[0]), r"a: expected \(B, D\)"),
    (lambda: losses.triplet_margin_loss(X, X, Y[:1]), "negative: expected the shape of anchor"),
    (lambda: losses.triplet_margin_loss(X, Y[:1], X), "positive: expected the shape of anchor"),
    (lambda: losses.binary_cross_entropy_with_logits(X, Y[0]), "target: expected the shape of logits"),
    (lambda: losses.kl_div(X, Y[0]), "target: expected the shape of input"),
    (lambda: losses.info_nce(X, Y[:1]), "b: expected the shape of a"),
    (lambda: losses.margin_ranking_loss(X, Y[0], Y + 1), "input2: expected the shape of input1"),
    (lambda: losses.margin_ranking_loss(X, X, Y[0] + 1), "target: expected the shape of input1"),
    (lambda: losses.multi_margin_loss(X, np.array([0, 1, 2])), "target: expected 2 integers"),
    (lambda: losses.multi_margin_loss(X, np.array([0.0, 1.0])), "target: expected 2 integers"),
    (lambda: losses.margin_ranking_loss(X, Y, Y), "target: .*1 or"),
    (lambda: losses.multi_margin_loss(X, np.array([0, 3])), r"target: expected 2 integers in \[0, 3\)"),
    (lambda: losses.multi_margin_loss(X, np.array([0, -1])), "target: "),
    (lambda: losses.multi_margin_loss(X, np.array([0, 1]), p=3), "p: expected 1 or 2, got 3"),
    (lambda: losses.multi_margin_loss(X[0], np.array([0])), r"input: expected scores \(B, C\)"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_arrays_in_arrays_out():
    assert isinstance(losses.mse_loss(X, Y), (np.ndarray, np.generic))
