"""What all tests of load tests need."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Interrupts arrive, here and in what is begun here.

    A shell switches them off for what it starts in the background.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def no_keys_left(shared) -> Iterator[None]:
    """Other tests of this process count the keys of the cache."""
    yield
    shared.clear_cache()


@pytest.fixture(scope="module")
def shop(shared):
    """The open workshop with the tables of mixed traffic."""
    for name in ("type", "transactions"):
        shared.load_table(name)
    return shared
