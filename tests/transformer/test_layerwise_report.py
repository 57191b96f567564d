"""Reports on depth: what they tell of distributions that are written down by hand."""

import numpy as np
import pytest

from minattn.transformer import DepthReport

pytestmark = pytest.mark.paper(154)


def test_what_a_report_tells_by_hand():
    """One head of two, four tokens; token 7 asks twice and reads layer 0 with 0.9 and 0.7."""
    first = np.array([0.9, 0.4, 0.7, 0.6])
    p = np.stack([np.stack([first, 1 - first], -1), np.tile([1.0, 0.0], (4, 1))])[None]
    report = DepthReport((0, 3), p, np.array([[7, 2, 7, 5]]))
    np.testing.assert_allclose(report.mean(), [[0.65, 0.35], [1, 0]])
    logs = -(first * np.log(first) + (1 - first) * np.log(1 - first)).mean()
    np.testing.assert_allclose(report.entropy(), [logs, 0], atol=1e-15)
    np.testing.assert_allclose(report.by_position()[0, :, 0], (first + 1) / 2)
    assert report.favourite() == 0 and report.spread() == pytest.approx(first.std() / 2)
    table = report.by_token(9)
    assert table.shape == (9, 2) and np.isnan(table[[0, 1, 3, 4, 6, 8]]).all()
    np.testing.assert_allclose(table[[2, 5, 7]], [[0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])
    within = 2 * 0.05**2 / 4  # of the two that token 7 asked, 0.95 and 0.85
    assert report.explained() == pytest.approx(1 - within / (first / 2).var())


def test_what_is_explained_has_its_ends():
    same = DepthReport((0, 1), np.full((2, 1, 3, 2), 0.5), np.zeros((2, 3), int))
    assert same.explained() == 0 and same.spread() == 0
    p = np.array([0.2, 0.8, 0.2, 0.8])
    whole = DepthReport((0, 1), np.stack([p, 1 - p], -1)[None, None], np.array([[4, 1, 4, 1]]))
    assert whole.explained() == pytest.approx(1)
    none = DepthReport((0, 1), np.stack([p, 1 - p], -1)[None, None], np.array([[4, 4, 1, 1]]))
    assert none.explained() == pytest.approx(0)
    second = DepthReport((0, 1), np.stack([p / 4, 1 - p / 4], -1)[None, None], np.array([[4, 1, 4, 1]]))
    assert second.favourite() == 1
