"""Sources and differences are the library's; a table of checks refuses what is wrong and what is vacuous."""

import html
import inspect
import re
import sys

import numpy as np
import pytest

from minattn import autograd as ag
from minattn import findings
from minattn.findings import Bar
from minattn.plots import CheckFailed, Checks, note, show_diff, show_source
from minattn.plots.page import as_numpy, place_of, source_of


def text_of(markup):
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_show_source_shows_the_function_and_its_place():
    shown = show_source(place_of)
    source = inspect.getsource(place_of)
    lines = inspect.getsourcelines(place_of)[1]
    assert repr(shown) == f"# minattn/plots/page.py, line {lines}\n{source}"
    assert source.strip() in text_of(shown._repr_html_())
    assert f">minattn/plots/page.py, line {lines}</p>" in shown._repr_html_()
    assert 'data-module="minattn.plots.page" data-name="place_of"' in shown._repr_html_()
    assert '<span class="k">def</span>' in shown._repr_html_()


def test_show_source_of_a_primitive_shows_forward_and_derivative():
    source = source_of(ag.exp)
    assert source.startswith("def _exp(") and "def _d_exp(" in source
    assert 'data-name="exp"' in show_source(ag.exp).html


def test_show_source_of_a_method_is_dedented_and_of_a_module_is_whole():
    assert source_of(Bar.cleared).startswith("def cleared(")
    assert source_of(findings) == inspect.getsource(findings)
    assert place_of(findings) == "minattn/findings.py, line 1"


def test_show_source_refuses_what_has_no_source():
    with pytest.raises(TypeError, match=r"^obj must be a function, class, method or module, got int$"):
        show_source(3)
    with pytest.raises(TypeError):
        show_source(len)


def scale(q):
    shift = 1
    return q * 2 + shift


def shifted(q):
    shift = 1
    return q * 3 + shift


def test_show_diff_marks_exactly_what_changed_and_keeps_the_rest():
    shown = show_diff(scale, shifted)
    kept = [line for line in repr(shown).splitlines()[2:] if line.startswith("  ")]
    added = re.findall(r'<ins class="line">(.*?)</ins>', shown.html)
    removed = re.findall(r'<del class="line">(.*?)</del>', shown.html)
    assert [text_of(line) for line in added] == ["+ def shifted(q):", "+     return q * 3 + shift"]
    assert [text_of(line) for line in removed] == ["- def scale(q):", "-     return q * 2 + shift"]
    assert kept == ["      shift = 1"]
    heading = repr(shown).splitlines()[:2]
    assert heading == [f"- {place_of(scale)}", f"+ {place_of(shifted)}"]
    assert shown.html.count('class="minattn-file"') == 2


def test_show_diff_of_equal_sources_is_refused():
    with pytest.raises(ValueError, match=r"^old and new must differ, got two equal sources$"):
        show_diff(scale, scale)


def test_as_numpy_takes_tensors_arrays_and_numbers():
    x = np.arange(3.0)
    assert as_numpy(x) is x
    assert as_numpy(ag.Tensor(x, requires_grad=True)).tolist() == [0.0, 1.0, 2.0]
    assert as_numpy([1, 2]).tolist() == [1, 2]
    assert as_numpy(2.5).shape == ()

    class OnDevice:
        def get(self):
            return [7, 8]

    assert as_numpy(OnDevice()).tolist() == [7, 8]


def test_close_records_type_error_and_tolerance():
    checks = Checks("Equalities")
    checks.close("a", np.array([1.0, 2.5]), np.array([1.0, 2.0]), tol=0.5)
    checks.close("b", np.float32([3.0]), np.float32([3.0]), tol=1e-6)
    assert checks._table() == [
        ("a", "float64", "0.5", "0.5", "holds"),
        ("b", "float32", "0", "1e-06", "holds"),
    ]


def test_close_fails_above_its_tolerance_and_says_where():
    got = np.array([[1.0, 2.0], [3.0, 4.75]])
    with pytest.raises(CheckFailed, match=r"^x: largest error 0.75 at \(1, 1\) is above the tolerance 0.5$"):
        Checks().close("x", got, np.array([[1.0, 2.0], [3.0, 4.0]]), tol=0.5)


def test_close_fails_on_what_is_undefined_and_on_unequal_infinities():
    for bad in (np.nan, np.inf):
        with pytest.raises(CheckFailed, match=r"at \(1,\)"):
            Checks().close("x", [1.0, bad, 1.0], [1.0, 1.0, 1.0], tol=0.5)
    with pytest.raises(CheckFailed):
        Checks().close("x", [1.0, np.nan], [1.0, np.nan], tol=0.5)
    with pytest.raises(CheckFailed):
        Checks().close("x", [1.0, np.inf], [1.0, -np.inf], tol=0.5)
    Checks().close("x", [1.0, -np.inf], [1.0, -np.inf], tol=0.5)


def test_close_compares_shapes_without_broadcasting():
    with pytest.raises(CheckFailed, match=r"^x: got has shape \(3,\), want has shape \(1, 3\)$"):
        Checks().close("x", np.ones(3), np.ones((1, 3)), tol=0.1)


@pytest.mark.parametrize("tol", [2.0, 5.0, -0.1, np.nan])
def test_close_refuses_a_tolerance_that_would_let_everything_pass(tol):
    with pytest.raises(
        ValueError, match=r"^x: tol must be at least 0 and below the largest entry of want \(2\), got"
    ):
        Checks().close("x", [1.0, -2.0], [1.0, -2.0], tol=tol)


def test_close_refuses_to_compare_nothing():
    for nothing in (np.ones((0, 3)), np.array([np.nan])):
        with pytest.raises(
            ValueError, match=r"^x: want must hold finite numbers to compare with, got shape "
        ):
            Checks().close("x", nothing, nothing, tol=0.1)
    Checks().close("zero tolerance", [1.0], [1.0], tol=0)


def test_equal():
    checks = Checks()
    checks.equal("zeros", np.zeros(2), [0.0, 0.0])
    assert checks._table() == [("zeros", "float64", "0", "exact", "holds")]
    with pytest.raises(CheckFailed, match=r"^x: 1 of 2 entries differ$"):
        checks.equal("x", [1.0, 2.0], [1.0, np.nextafter(2.0, 3.0)])
    with pytest.raises(CheckFailed, match=r"^x: got has shape \(2,\), want has shape \(1,\)$"):
        checks.equal("x", [1, 1], [1])
    with pytest.raises(ValueError, match=r"^x: got must have entries to compare, got shape \(0,\)$"):
        checks.equal("x", [], [])
    assert len(checks.rows) == 1


def test_true():
    checks = Checks()
    checks.true("one", True)
    checks.true("all", np.array([True, True]))
    assert checks._table() == [("one", "", "", "", "holds"), ("all", "", "", "", "holds")]
    with pytest.raises(CheckFailed, match=r"^x: holds for 1 of 2$"):
        checks.true("x", [True, False])
    for wrong in (1, [], "yes", [0.5]):
        with pytest.raises(TypeError, match=r"^x: condition must be boolean and not empty, got "):
            checks.true("x", wrong)
    assert len(checks.rows) == 2


def test_raises():
    checks = Checks()
    checks.raises("refused", ZeroDivisionError, lambda a, b: a / b, 1, b=0)
    assert checks._table() == [("refused", "ZeroDivisionError", "", "raises", "holds")]
    with pytest.raises(CheckFailed, match=r"^x: ValueError was not raised$"):
        checks.raises("x", ValueError, lambda: None)
    with pytest.raises(ZeroDivisionError):
        checks.raises("x", ValueError, lambda: 1 / 0)
    assert len(checks.rows) == 1


def test_the_table_as_text():
    checks = Checks("What equals what")
    checks.close("naive = fast", [1.0, 2.0], [1.0, 2.0], tol=1e-12)
    checks.true("weights are not negative", True)
    assert repr(checks).splitlines() == [
        "What equals what",
        "check                     type     largest error  tolerance  verdict",
        "naive = fast              float64  0              1e-12      holds",
        "weights are not negative                                     holds",
    ]
    assert repr(Checks()).splitlines()[0] == "Checks"


def test_the_table_as_html_is_accessible_and_escaped():
    checks = Checks("A < B")
    checks.equal("k & v", [1], [1])
    markup = checks._repr_html_()
    assert "<caption>A &lt; B</caption>" in markup
    assert re.findall(r'<th scope="col">(.*?)</th>', markup) == [
        "Check",
        "Type",
        "Largest error",
        "Tolerance",
        "Verdict",
    ]
    assert '<th scope="row">k &amp; v</th><td>int64</td><td>0</td><td>exact</td>' in markup
    assert '<td class="holds">✓ holds</td>' in markup
    assert markup.startswith('<div class="minattn-scroll" tabindex="0"><table class="minattn-checks">')


# ---- numbers in the text


def test_a_note_is_glued_as_a_plain_number(monkeypatch):
    glued = {}
    monkeypatch.setattr("myst_nb.glue", lambda name, value, display: glued.update({name: (value, display)}))
    note("err", np.float64(0.5))
    note("kind", "causal")
    assert glued == {"err": (0.5, False), "kind": ("causal", False)} and type(glued["err"][0]) is float


def test_a_note_without_the_books_tools_does_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "myst_nb", None)
    note("err", 0.5)
