"""Text to token ids and back, by the `tokenizers` library; chats to text, by the model's own template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from minattn.nn.decode import text_pieces


class Batch(NamedTuple):
    """Texts as one array: ids (B, N), filled up with padding, and the number of real tokens (B,)."""

    ids: np.ndarray
    lengths: np.ndarray


class Tokenizer:
    """A pretrained model's vocabulary.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    eos : int, optional
        The token at which generation ends.
    pad : int, optional
        The token that fills up shorter texts of a batch; `eos` by default, or 0 if there is none.
    template : str, optional
        Jinja template that turns the messages of a chat into one text.
    special : mapping of str to int, optional
        Ids of tokens that the template may name, as in ``{"bos_token": 1}``.
    """

    def __init__(self, backend: Any, eos: int | None = None, *, pad: int | None = None,
                 template: str | None = None, special: Mapping[str, int] | None = None) -> None:
        self.backend, self.eos, self.template = backend, eos, template
        self.pad = pad if pad is not None else eos or 0
        self.special = dict(special or {})

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Special tokens are recognised in it, as in ``"<|im_start|>"``."""
        return self.backend.encode(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def token(self, i: int) -> str:
        """One token as text."""
        return self.decode([i])

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def batch(self, texts: Sequence[str], side: str = "left") -> Batch:
        """Several texts as one array, the shorter ones filled up with `pad` on one side.

        Parameters
        ----------
        texts : sequence of str
        side : {"left", "right"}
            Left for generation, which goes on at the right end of every row.

        Raises
        ------
        ValueError
            If `side` is neither, or there is no text, or one has no tokens.
        """
        return padded([self.encode(text) for text in texts], self.pad, side)

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The text that each id adds, so that together they are ``decode(ids)``.

        Bytes of a character that is not complete are kept back: a token that ends in the middle of one adds
        nothing, and the one that completes it adds all of it. What is left at the end comes as a last piece.
        """
        return text_pieces(self.decode, ids)

    def render(self, messages: Sequence[Mapping[str, Any]], reply: bool = True, **variables: Any) -> str:
        """A chat as one text, by the model's template.

        Parameters
        ----------
        messages : sequence of mapping
            As in ``{"role": "user", "content": "Who wrote Hamlet?"}``.
        reply : bool
            Whether the text ends with the beginning of the assistant's next turn.
        **variables
            Further variables of the template, such as ``tools``.

        Raises
        ------
        ValueError
            If there is no template, a message is no mapping with a role, or the template refuses the chat.
        """
        from jinja2 import TemplateError

        if self.template is None:
            raise ValueError("template: this tokenizer has none; write the text of the chat yourself")
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise ValueError(f"messages: expected mappings with a role and a content, got {message!r}")
        given = {"tools": None, "documents": None, "messages": [dict(m) for m in messages],
                 "add_generation_prompt": reply, **{k: self.token(i) for k, i in self.special.items()}}
        try:
            return _sandbox().from_string(self.template).render({**given, **variables})
        except TemplateError as error:
            raise ValueError(f"messages: the model's template refuses them: {error}") from error

    def chat(self, messages: Sequence[Mapping[str, Any]], reply: bool = True, **variables: Any) -> list[int]:
        """The ids of a chat; see `render`. Special tokens come from the template: no others are added."""
        return self.backend.encode(self.render(messages, reply, **variables), add_special_tokens=False).ids


def padded(sequences: Sequence[Sequence[int]], pad: int = 0, side: str = "left") -> Batch:
    """Sequences of ids as one array, the shorter ones filled up with `pad`; see `Tokenizer.batch`."""
    if side not in ("left", "right"):
        raise ValueError(f"side: expected left or right, got {side!r}")
    lengths = np.array([len(s) for s in sequences], dtype=np.int64)
    if 0 in (len(lengths), *lengths):
        raise ValueError(f"sequences: expected at least one, and none without tokens, got lengths "
                         f"{lengths.tolist()}")
    ids = np.full((len(lengths), lengths.max()), pad, dtype=np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[slice(len(row) - len(sequence), None) if side == "left" else slice(len(sequence))] = sequence
    return Batch(ids, lengths)


def byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], special: Sequence[int]) -> Any:
    """A `tokenizers.Tokenizer` as GPT-2's, in which each digit is a token of its own.

    Numerals (Unicode's category N) are cut out first, one by one, and what lies between them is split as
    GPT-2 does. So two spaces before a digit stay together, while GPT-2 gives the second to the digit.

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

    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    backend = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, pairs, fuse_unk=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(tokens[i], special=True, normalized=False) for i in special])
    return backend


def _sandbox() -> Any:
    """Jinja as chat templates expect it, unable to reach anything but what it is given."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(x: Any, indent: int | None = None, ensure_ascii: bool = False, **how: Any) -> str:
        return json.dumps(x, indent=indent, ensure_ascii=ensure_ascii, **how)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                            extensions=["jinja2.ext.loopcontrols"])
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return sandbox
