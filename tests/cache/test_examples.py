"""Every example in a docstring of the cache's modules gives what it says."""

import doctest

import pytest

from workshop_lib.cache import codec, keys


@pytest.mark.parametrize("module", [codec, keys])
def test_the_examples_hold(module) -> None:
    found = doctest.testmod(module)
    assert (found.failed, found.attempted > 0) == (0, True)
