"""The tokenizer in a checkpoint's folder: ``tokenizer.json``, and what ``tokenizer_config.json`` adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, Settings
from .tokenizer import Tokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_tokenizer(folder: Path, settings: Settings) -> Tokenizer:
    """The tokenizer in a folder, with its named tokens and its template of chats.

    Parameters
    ----------
    folder : Path
    settings : Settings
        The model's ``config.json``, which says where generation ends and what pads if nothing else does.

    Raises
    ------
    CheckpointError
        If ``tokenizer.json`` is missing or damaged.
    """
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: cannot be read (no such file)")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"{path}: damaged or no tokenizer ({error})") from error
    beside = folder / "tokenizer_config.json"
    said = Settings(beside).values if beside.is_file() else {}
    ids = {name: backend.token_to_id(_text(said.get(name))) for name in _NAMED}
    special = {name: i for name, i in ids.items() if i is not None}
    eos, pad = (special.get(f"{name}_token", _first(settings.values.get(f"{name}_token_id")))
                for name in ("eos", "pad"))
    return Tokenizer(backend, eos, pad=pad, template=_template(folder, said), special=special)


def _text(token: Any) -> str:
    """A token as it is written: a text, or an object with one as its content."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _first(ids: Any) -> int | None:
    """An id, or the first of several."""
    ids = ids[0] if isinstance(ids, list) and ids else ids
    return ids if type(ids) is int else None


def _template(folder: Path, said: dict[str, Any]) -> str | None:
    """The template of chats: in a file of its own, or among the settings, perhaps as one of several."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = said.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
