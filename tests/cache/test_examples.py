"""Every example in a docstring of the cache's rooms gives what it says."""

import doctest
from importlib import import_module
from pkgutil import iter_modules

import pytest

from workshop_lib import cache as rooms


@pytest.mark.parametrize("room", [room.name for room in iter_modules(rooms.__path__)])
def test_the_examples_hold(room: str) -> None:
    assert doctest.testmod(import_module(f"{rooms.__name__}.{room}")).failed == 0


def test_there_are_examples() -> None:
    tried = [doctest.testmod(import_module(f"{rooms.__name__}.{name}")).attempted
             for name in ("codec", "fields", "json_codec", "keys")]  # fmt: skip
    assert all(tried)
