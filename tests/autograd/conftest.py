"""Fixtures of the table's checks."""

from tests.autograd.elsewhere import other_library  # noqa: F401
