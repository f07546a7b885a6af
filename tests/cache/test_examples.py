"""Every example in a docstring of the cache's modules gives what it says."""

import doctest
from importlib import import_module
from pkgutil import iter_modules

import pytest

from workshop_lib import cache as package


@pytest.mark.parametrize("module", [module.name for module in iter_modules(package.__path__)])
def test_the_examples_hold(module: str) -> None:
    assert doctest.testmod(import_module(f"{package.__name__}.{module}")).failed == 0


def test_there_are_examples() -> None:
    tried = [doctest.testmod(import_module(f"{package.__name__}.{name}")).attempted
             for name in ("codec", "keys")]  # fmt: skip
    assert all(tried)
