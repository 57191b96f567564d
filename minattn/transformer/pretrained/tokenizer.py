"""Text to token ids and back, by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class Tokenizer:
    """A pretrained model's vocabulary.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    eos : int, optional
        The token at which generation ends.
    """

    def __init__(self, backend: Any, eos: int | None = None) -> None:
        self.backend, self.eos = backend, eos

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.backend.encode(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, i: int) -> str:
        """One token as text."""
        return self.decode([i])

    def __len__(self) -> int:
        return self.backend.get_vocab_size()


def byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], special: Sequence[int]) -> Any:
    """A `tokenizers.Tokenizer` as GPT-2's, in which each digit is a token of its own.

    Parameters
    ----------
    tokens : sequence of str
        The vocabulary, in order of id.
    merges : sequence of str
        Pairs "left right" in order of priority.
    special : sequence of int
        Ids of tokens that are never split, such as those of a chat's turns.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    pairs = [tuple(merge.split(" ")) for merge in merges]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, pairs, fuse_unk=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in special])
    return backend
