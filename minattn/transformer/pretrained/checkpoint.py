"""What a pretrained model is stored as: named arrays, still in their files."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; the message names the file and what is wrong with it."""
