"""What all tests of load tests need."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # the stand-in is no part of the package
from lambda_runtime import allow_writing, build, copy_runtime, unpack


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


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The load worker's package, for this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "1")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "15")
        found = build(tmp_path_factory.mktemp("package") / "deep" / "worker.zip")
    sys.stdout.write(f"{found}\n")
    return found


@pytest.fixture(scope="session")
def task(built, tmp_path_factory):
    """The package as Lambda unpacks it."""
    folder = unpack(built.path, tmp_path_factory.mktemp("task"))
    yield folder
    allow_writing(folder)


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """Lambda's own runtime client."""
    return copy_runtime(tmp_path_factory.mktemp("runtime"))
