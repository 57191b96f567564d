"""`minattn.autograd.reduce` against PyTorch, finite differences and its own rules."""

import pytest

from tests.autograd import case as checks
from tests.autograd.cases import REDUCE


@checks.each(REDUCE)
def test_samples(case):
    checks.check_samples(case)


@checks.each(REDUCE)
def test_equals_torch(case):
    checks.check_against_torch(case)


@checks.each([c for c in REDUCE if c.order and c.exact])
def test_derivatives(case):
    checks.check_derivatives(case)


@checks.each(REDUCE)
def test_array_in_array_out(case):
    checks.check_array_in_array_out(case)


@checks.each(REDUCE)
def test_single_precision(case, monkeypatch):
    checks.check_single_precision(case, monkeypatch)
