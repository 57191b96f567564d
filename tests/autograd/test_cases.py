"""The table leaves no public function out."""

import importlib

from minattn import autograd, kernels
from tests.autograd.cases import CASES, ELSEWHERE
from tests.kernels import cases as kernel_cases


def test_every_function_is_in_the_table():
    assert {c.name for c in CASES} | set(ELSEWHERE) == set(autograd.__all__)
    assert not {c.name for c in CASES} & set(ELSEWHERE)
    assert {c.name for c in kernel_cases.CASES} | set(kernel_cases.ELSEWHERE) == set(kernels.__all__)


def test_what_is_covered_elsewhere_is_named_there():
    for package, elsewhere in (("autograd", ELSEWHERE), ("kernels", kernel_cases.ELSEWHERE)):
        for name, module in elsewhere.items():
            source = importlib.import_module(f"tests.{package}.{module}")
            assert any(hasattr(source, found) for found in (name, "ag")), f"{module} does not use {name}"


def test_cases_have_different_names():
    for cases in (CASES, kernel_cases.CASES):
        assert len({c.covers for c in cases}) == len(cases)
