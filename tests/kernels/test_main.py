"""`python -m minattn.kernels` compiles what attention runs on, forward and backward, in both precisions."""

import re

import numpy as np
import pytest

from minattn.kernels import __main__ as ahead
from minattn.kernels import flash


def test_both_precisions_are_compiled_forward_and_backward(capsys, monkeypatch):
    pytest.importorskip("numba")
    seen, real = [], flash.launch
    monkeypatch.setattr(flash, "launch", lambda run, kernel, q, *rest: (
        seen.append((kernel.__name__, q.dtype)), real(run, kernel, q, *rest))[0])
    ahead.main()
    assert seen == [(name, dtype) for dtype in (np.float32, np.float64) for name in ("forward", "backward")]
    assert re.fullmatch(r"\[kernels\] attention, .* in \d+\.\d s\n", capsys.readouterr().out)


@pytest.mark.parametrize("missing", ["have_numba", "have_blas"])
def test_without_a_compiler_it_says_so(missing, capsys, monkeypatch):
    monkeypatch.setattr(ahead, missing, lambda: False)
    ahead.main()
    assert "nothing to compile" in capsys.readouterr().out
