"""The Shakespeare run: its settings, its resuming, and where the model is kept."""

from dataclasses import replace

import numpy as np
import pytest

from minattn.autograd import no_grad
from minattn.experiments.transformer import shakespeare
from minattn.transformer import count


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The same run, of ten steps, kept in a folder of its own."""
    monkeypatch.setenv("MINATTN_CACHE", str(tmp_path))
    text = "To be, or not to be, that is the question. " * 60
    vocabulary = shakespeare.data.CharVocabulary(text)
    corpus = shakespeare.Corpus(vocabulary, *shakespeare.data.split(vocabulary.encode(text)))
    monkeypatch.setattr(shakespeare, "corpus", lambda: corpus)
    config = replace(shakespeare.CONFIG, vocab=len(vocabulary), context=16, layers=1, heads=2, d_model=16)
    monkeypatch.setattr(shakespeare, "CONFIG", config)
    monkeypatch.setattr(shakespeare, "STEPS", 10)
    monkeypatch.setattr(shakespeare, "WARMUP", 2)
    return tmp_path


def test_the_configuration_is_nanogpts_and_fits_the_corpus():
    config = shakespeare.CONFIG
    assert (config.layers, config.heads, config.d_model, config.context) == (4, 4, 128, 64)
    assert (shakespeare.BATCH, shakespeare.STEPS) == (12, 2000)
    assert config.vocab == len(shakespeare.corpus().vocabulary)
    assert 0.75e6 < sum(count(config).parameters.values()) < 0.85e6


def test_evaluation_is_the_mean_over_every_window(small):
    run = shakespeare.fit(2, seed=0)
    ids = shakespeare.corpus().validation
    losses = []
    with no_grad():
        for start in range(0, len(ids) - 16, 16):
            x, y = ids[start : start + 16], ids[start + 1 : start + 17]
            losses.append(run.model.loss(x[None], y[None]).item())
    np.testing.assert_allclose(run.history.validation[-1][1], np.mean(losses), rtol=1e-5)


def test_an_interrupted_run_goes_on_to_the_same_losses(small):
    whole = shakespeare.fit(10, seed=0)
    shakespeare.fit(4, seed=0, checkpoint=small / "run")
    resumed = shakespeare.fit(10, seed=0, checkpoint=small / "run")
    assert resumed.history.losses == whole.history.losses
    assert whole.history.losses[-1] < whole.history.losses[0]


def test_a_model_is_kept_when_it_is_done_and_trained_only_once(small):
    assert not shakespeare.place().exists()
    first = shakespeare.trained()
    assert shakespeare.place().exists() and len(first.history.losses) == 10
    assert [p.name for p in shakespeare.place().parent.iterdir()] == [shakespeare.place().name]
    stamp = shakespeare.place().stat().st_mtime_ns
    again = shakespeare.trained()
    assert again.history.losses == first.history.losses
    for (name, p), (_, q) in zip(first.model.named_parameters(), again.model.named_parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data, err_msg=name)
    assert shakespeare.place().stat().st_mtime_ns >= stamp


def test_another_setting_has_another_place(small, monkeypatch):
    before = shakespeare.place()
    monkeypatch.setattr(shakespeare, "SEED", 1)
    assert shakespeare.place() != before
