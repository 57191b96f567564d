"""The same lines on CuPy arrays: values and gradients equal those of NumPy, and a model trains there."""

import numpy as np
import pytest

import minattn as mn
from minattn.attention import attention, causal


def gpus() -> int:
    try:
        import cupy

        return cupy.cuda.runtime.getDeviceCount()
    except Exception:  # CuPy absent, or no driver
        return 0


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpus(), reason="needs CuPy and an NVIDIA GPU")]
rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape)


def positive(*shape):
    return rng.uniform(0.5, 2, shape)


def complexes(*shape):
    return normal(*shape) + 1j * normal(*shape)


INDEX = np.array([[0, 0, 1], [3, 1, 2], [2, 0, 3]])
CASES = {
    "add": (mn.add, normal(3, 1), normal(4)),
    "sub": (mn.sub, normal(3, 1), normal(4)),
    "mul": (mn.mul, normal(3, 1), normal(4)),
    "div": (mn.div, normal(3, 1), positive(4)),
    "pow": (mn.pow, positive(3, 1), normal(4)),
    "power of a number": (lambda x: 2.0**x, normal(3)),
    "exp": (mn.exp, normal(3)),
    "log": (mn.log, positive(3)),
    "log1p": (mn.log1p, positive(3)),
    "sqrt": (mn.sqrt, positive(3)),
    "abs": (mn.abs, normal(3)),
    "sin": (mn.sin, normal(3)),
    "cos": (mn.cos, normal(3)),
    "tanh": (mn.tanh, normal(3)),
    "sigmoid": (mn.sigmoid, normal(3)),
    "softplus": (mn.softplus, normal(3)),
    "relu": (mn.relu, normal(9)),
    "gelu": (mn.gelu, normal(9)),
    "silu": (mn.silu, normal(9)),
    "erf": (mn.erf, normal(9)),
    "gelu tanh": (lambda x: mn.gelu(x, "tanh"), normal(9)),
    "maximum": (mn.maximum, normal(5), normal(5)),
    "minimum": (mn.minimum, normal(5), normal(5)),
    "clip": (lambda x: mn.clip(x, -0.5, 0.7), normal(9)),
    "where": (lambda x, y: mn.where(x.data > 0, x, y), normal(5), normal(5)),
    "sum": (lambda x: mn.sum(x, 1), normal(3, 4)),
    "mean": (lambda x: mn.mean(x, (0, 2), True), normal(3, 4, 2)),
    "var": (lambda x: mn.var(x, 1), normal(3, 4)),
    "std": (lambda x: mn.std(x), normal(3, 4)),
    "amax": (lambda x: mn.amax(x, 1), normal(3, 4)),
    "amin": (lambda x: mn.amin(x), normal(3, 4)),
    "max": (lambda x: mn.max(x, 1).values, normal(3, 4)),
    "min": (lambda x: mn.min(x, -1, True).values, normal(3, 4)),
    "logsumexp": (lambda x: mn.logsumexp(x, 1), normal(3, 4)),
    "norm": (lambda x: mn.norm(x, dim=1), normal(3, 4)),
    "softmax": (mn.softmax, normal(3, 4)),
    "log_softmax": (mn.log_softmax, normal(3, 4)),
    "cumsum": (lambda x: mn.cumsum(x, 1), normal(3, 4)),
    "scan": (lambda a, b: mn.scan(a, b, 1), normal(3, 4), normal(3, 4)),
    "reshape": (lambda x: mn.reshape(x, -1, 2), normal(3, 4)),
    "permute": (lambda x: mn.permute(x, 2, 0, 1), normal(3, 4, 2)),
    "expand": (lambda x: mn.expand(x, 5, -1, 3), normal(4, 1)),
    "cat": (lambda x, y: mn.cat([x, y], 1), normal(3, 2), normal(3, 4)),
    "stack": (lambda x, y: mn.stack([x, y], 1), normal(3, 2), normal(3, 2)),
    "split": (lambda x: mn.split(x, [1, 3], 1)[1], normal(2, 4)),
    "pad": (lambda x: mn.pad(x, ((1, 2), (0, 1))), normal(2, 3)),
    "roll": (lambda x: mn.roll(x, 1, 0), normal(3, 2)),
    "flip": (lambda x: mn.flip(x, 0), normal(3, 2)),
    "tril": (mn.tril, normal(2, 3, 3)),
    "triu": (lambda x: mn.triu(x, 1), normal(3, 3)),
    "repeat_interleave": (lambda x: mn.repeat_interleave(x, 2, 1), normal(3, 2)),
    "slice": (lambda x: x[1:, None, ::2], normal(3, 4)),
    "index": (lambda x: x[[0, 0, 2], [1, 1, 3]], normal(3, 4)),
    "index_put": (lambda x, v: mn.index_put(x, (slice(0, 2), 1), v), normal(3, 4), normal(2)),
    "gather": (lambda x: mn.gather(x, 1, mn.namespace(x).asarray(INDEX)), normal(3, 4)),
    "scatter_add": (
        lambda x, s: mn.scatter_add(x, 1, mn.namespace(x).asarray(INDEX), s),
        normal(3, 4),
        normal(3, 4),
    ),
    "segment_sum": (lambda x: mn.segment_sum(x, mn.namespace(x).asarray([2, 0, 2]), 4), normal(3, 4)),
    "embedding": (lambda w: mn.embedding(w, mn.namespace(w).asarray([[2, 0], [2, 2]])), normal(3, 4)),
    "sort": (lambda x: mn.sort(x, 0, True).values, normal(3, 4)),
    "topk": (lambda x: mn.topk(x, 2).values, normal(3, 4)),
    "matmul": (mn.matmul, normal(2, 3, 4), normal(4, 5)),
    "matmul batched": (mn.matmul, normal(2, 1, 3, 4), normal(3, 4, 5)),
    "matrix times vector": (mn.matmul, normal(2, 3, 4), normal(4)),
    "matmul complex": (mn.matmul, complexes(2, 3), complexes(3, 2)),
    "einsum": (lambda x, y: mn.einsum("bhid,bhjd->bhij", x, y), normal(2, 2, 3, 4), normal(2, 2, 5, 4)),
    "trace": (lambda x: mn.einsum("iij->j", x), normal(3, 3, 2)),
    "linear": (mn.linear, normal(2, 3, 4), normal(5, 4), normal(5)),
    "inverse": (mn.inverse, normal(2, 3, 3)),
    "solve": (mn.solve, normal(3, 3), normal(3)),
    "pinv": (lambda a: mn.pinv(a, 40), normal(4, 2)),
    "real": (mn.real, complexes(3)),
    "imag": (mn.imag, complexes(3)),
    "conj": (mn.conj, complexes(3)),
    "complex": (mn.complex, normal(3), normal(3)),
    "abs complex": (mn.abs, complexes(3)),
    "rfft": (mn.rfft, normal(2, 5)),
    "irfft": (lambda z: mn.irfft(z, 5), complexes(3)),
    "fft": (mn.fft, complexes(5)),
    "conv1d": (
        lambda x, w, b: mn.conv1d(x, w, b, 2, "causal", 2, 2),
        normal(2, 4, 9),
        normal(6, 2, 3),
        normal(6),
    ),
    "conv2d": (lambda x, w: mn.conv2d(x, w, None, (2, 1), 1), normal(2, 3, 5, 4), normal(4, 3, 3, 2)),
    "max_pool2d": (lambda x: mn.max_pool2d(x, 2, 1), normal(1, 2, 4, 4)),
    "avg_pool2d": (lambda x: mn.avg_pool2d(x, 2), normal(1, 2, 4, 4)),
    "layer_norm": (mn.layer_norm, normal(3, 4), normal(4), normal(4)),
    "rms_norm": (mn.rms_norm, normal(3, 4), normal(4)),
    "cross_entropy": (
        lambda x: mn.cross_entropy(x, mn.namespace(x).asarray([1, -100, 0]), reduction="sum"),
        normal(3, 4),
    ),
    "attention": (
        lambda q, k, v: attention(q, k, v, mask_mod=causal),
        normal(2, 4, 5, 3),
        normal(2, 2, 5, 3),
        normal(2, 2, 5, 6),
    ),
    "attention, sparsemax": (
        lambda q, k, v: attention(q, k, v, normalizer="sparsemax"),
        *(normal(1, 2, 4, 3) for _ in "qkv"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_those_of_numpy(name):
    import cupy

    f, *xs = CASES[name]
    on_cpu = [mn.Tensor(x, requires_grad=True) for x in xs]
    on_gpu = [mn.Tensor(cupy.asarray(x), requires_grad=True) for x in xs]
    want, got = f(*on_cpu), f(*on_gpu)
    assert isinstance(got.data, cupy.ndarray)
    np.testing.assert_allclose(got.data.get(), want.data, rtol=1e-9, atol=1e-10)
    cotangent = np.random.default_rng(1).standard_normal(want.shape).astype(want.dtype)
    want.backward(cotangent)
    got.backward(cupy.asarray(cotangent))
    for a, b in zip(on_gpu, on_cpu, strict=True):
        assert isinstance(a.grad, cupy.ndarray)
        np.testing.assert_allclose(a.grad.get(), b.grad, rtol=1e-8, atol=1e-9)
    if name != "where":  # whose condition here is made of a Tensor
        assert isinstance(f(*map(cupy.asarray, xs)), cupy.ndarray)  # array in, array out


def test_a_model_trains_on_the_gpu_as_on_the_cpu():
    import cupy

    from minattn.nn.optim import AdamW, clip_grad_norm_
    from minattn.transformer import GPT, Config

    config = Config(vocab=20, context=16, layers=2, heads=4, d_model=32)
    losses = {}
    for device in ("cpu", "gpu"):
        model = GPT(config, rng=np.random.default_rng(0)).to(np.float64).to(device)
        optimizer, draw = AdamW(model.parameters(), lr=1e-2), np.random.default_rng(1)
        losses[device] = []
        for _ in range(10):
            tokens = np.cumsum(draw.integers(0, 3, (8, 17)), 1) % 20
            tokens = cupy.asarray(tokens) if device == "gpu" else tokens
            optimizer.zero_grad()
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses[device].append(loss.item())
    assert losses["cpu"][-1] < losses["cpu"][0]
    np.testing.assert_allclose(losses["gpu"], losses["cpu"], rtol=1e-9)
