"""The grader graded, chapter by chapter; and every worked number of every stub."""

import doctest
import types

import pytest

from minattn.grade import chapters, grade, tasks_of
from minattn.grade.selftest import selftest
from minattn.grade.task import as_submission, stubs


@pytest.mark.slow
@pytest.mark.parametrize("chapter", chapters())
def test_selftest(chapter):
    assert [check for check in selftest(chapter) if check[1]] == []


@pytest.mark.parametrize("chapter", chapters())
def test_worked_numbers(chapter):
    module = types.ModuleType("stubs")
    exec(compile(stubs(chapter).read_text(encoding="utf-8"), str(stubs(chapter)), "exec"), module.__dict__)
    for task in tasks_of(chapter):
        names = {**module.__dict__, task.function: task.solution}
        found = doctest.DocTestFinder().find(getattr(module, task.function), task.function, globs=names)
        assert sum(len(test.examples) for test in found) >= 1
        for test in found:
            assert doctest.DocTestRunner().run(test).failed == 0


def test_dense_attention_does_not_fit_and_loses_that_point_alone():
    tasks = tasks_of("attention")
    dense = as_submission(tasks[1].solution, "tiled_attention").replace(b"(q, k, v)", b"(q, k, v, tile)")
    dense = dense[: dense.index(b"    out =")] + (
        b"    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[3])\n    p = np.exp(s - s.max(-1, "
        b"keepdims=True))\n"
        b"    return p / p.sum(-1, keepdims=True) @ v\n"
    )
    report = grade(dense, [tasks[3]]).tasks[0]
    lost = {layer.name: layer.of - layer.points for layer in report.layers}
    assert lost == {"runs": 0, "shapes": 0, "values": 0, "limits": 0, "bytes": 1}
    assert "memory" in report.layers[-1].told[0]


def test_a_hidden_failure_costs_itself_alone():
    task = tasks_of("attention")[1]
    source = (
        as_submission(task.solution, task.function).replace(
            b"    return out", b"    global n\n    n += 1\n    return out * (1 + (n == 5))"
        )
        + b"\nn = 0\n"
    )
    report = grade(source, [task]).tasks[0]
    assert report.points == task.total - 6 / 6
    assert any("(hidden)" in told for told in report.layers[2].told)


def test_same_student_and_seed_draw_the_same_cases():
    from minattn.grade.score import questions

    task = tasks_of("attention")[1]
    one, same, other = (questions(task, who, 3) for who in ("ada", "ada", "bob"))
    assert all((a.inputs["q"] == b.inputs["q"]).all() for a, b in zip(one, same, strict=True))
    assert (one[0].inputs["q"] == other[0].inputs["q"]).all()  # public
    assert not any(
        a.inputs["q"].shape == b.inputs["q"].shape and (a.inputs["q"] == b.inputs["q"]).all()
        for a, b in zip(one[2:6], other[2:6], strict=True)
    )
