"""The same seed gives the same bytes, here and on every machine: digests of small draws are committed.

Whole numbers are compared exactly, by SHA-256. Floats are compared by a weighted sum to six digits, since the
last bit of a sine or an exponential may differ between machines.
"""

import hashlib

import numpy as np
import pytest

from minattn import data

PHI = np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])

DRAWS = {
    "batches": lambda r: data.batches(r, np.arange(50), 3, 5),
    "copy": lambda r: data.copy(r, 3, 5, 7),
    "counting": lambda r: data.counting(r, 3, 12, 2),
    "flip_flop": lambda r: data.flip_flop(r, 3, 12, 0.5),
    "glyph_strips": lambda r: data.glyph_strips(r, 2, (1, 3), warp=0.1),
    "induction": lambda r: data.induction(r, 3, 12, 9, (2, 5)),
    "lda": lambda r: data.lda(r, 3, 9, PHI, active=1),
    "lda_alpha": lambda r: data.lda(r, 3, 9, PHI, alpha=0.5),
    "linear_regression": lambda r: data.linear_regression(r, 2, 3, 2, noise=0.1),
    "markov": lambda r: data.markov(r, 3, 9, [[0.5, 0.5], [0.1, 0.9]]),
    "modular_arithmetic": lambda r: data.modular_arithmetic(r, 3, 9),
    "mqar": lambda r: data.mqar(r, 3, 16, 3, 12),
    "needle": lambda r: data.needle(r, 3, 12, 9, 2),
    "passkey": lambda r: data.passkey(r, 150, 4),
    "questions": lambda r: data.questions(r, data.scenes(np.random.default_rng(1), 20)),
    "random_grammar": lambda r: data.random_grammar(r, 3, 4),
    "random_transitions": lambda r: data.random_transitions(r, 4),
    "reverse": lambda r: data.reverse(r, 3, 5, 7),
    "scenes": lambda r: data.scenes(r, 3),
    "selective_copy": lambda r: data.selective_copy(r, 3, 8, 3, 5),
    "sentences": lambda r: data.sentences(r, 4),
    "sort": lambda r: data.sort(r, 3, 5, 7),
    "tones": lambda r: data.tones(r, 2),
}


def digest(value):
    """The first 16 digits of SHA-256 of everything that is exact, and a weighted sum of all floats."""
    sha, total = hashlib.sha256(), 0.0
    for part in value:
        if isinstance(part, np.ndarray) and part.dtype.kind == "f":
            total += float(np.dot(part.ravel().astype(np.float64), np.cos(np.arange(part.size))))
            part = part.shape
        if isinstance(part, np.ndarray):
            part = part.astype(np.int64).tolist()
        sha.update(repr(part).encode())
    return sha.hexdigest()[:16], total


@pytest.mark.parametrize("name", DRAWS)
def test_committed_digests(name):
    exact, total = digest(DRAWS[name](np.random.default_rng(7)))
    assert exact == DIGESTS[name][0]
    assert total == pytest.approx(DIGESTS[name][1], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", DRAWS)
def test_same_seed_same_bytes_other_seed_other_bytes(name):
    a, b, c = (DRAWS[name](np.random.default_rng(s)) for s in (5, 5, 6))
    raw = [repr([p.tobytes() if isinstance(p, np.ndarray) else p for p in v]) for v in (a, b, c)]
    assert raw[0] == raw[1] != raw[2]


DIGESTS = {
    "batches": ("4454af3a22f4366c", 0.0),
    "copy": ("1efcb5b1111f18ef", 0.0),
    "counting": ("fe1cfd0b6b6e7d1f", 0.0),
    "flip_flop": ("457159061fd31e01", 0.0),
    "glyph_strips": ("30a63afdeba11140", -28.508997325589874),
    "induction": ("eff30cb1b14f9677", 0.0),
    "lda": ("c947aeb178639674", -0.6436361174640574),
    "lda_alpha": ("28af9c804e699be8", -0.2877659182567975),
    "linear_regression": ("50ef277067cd8a98", 0.7661797201221878),
    "markov": ("b9632fbc4bc9bd65", 0.0),
    "modular_arithmetic": ("450ad62824a6ae1e", 0.0),
    "mqar": ("3e324d50b8823a86", 0.0),
    "needle": ("64cce4b6bc83ad93", 0.0),
    "passkey": ("3824683885e3d9ab", 0.0),
    "questions": ("8114dac3c95827ad", 0.0),
    "random_grammar": ("db4dfe233d5af872", 0.7244256563294061),
    "random_transitions": ("b280b0c9d628fc63", 3.305517645027187),
    "reverse": ("e831e5a754d86a7e", 0.0),
    "scenes": ("c8a8ae2b23fb2a60", -2.2321093003062717),
    "selective_copy": ("bc53f8e57c2c24f5", 0.0),
    "sentences": ("ded419f2b0c886b8", 0.0),
    "sort": ("69ad289027b3bbe5", 0.0),
    "tones": ("e29bcc06fc7d3906", 0.28902784362314815),
}
