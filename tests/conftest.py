"""One set of real engines for the whole test session, in a state folder of its own."""

from __future__ import annotations

import functools
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader

from workshop_lib import Workshop, open_workshop
from workshop_lib.services import local
from workshop_lib.services.state_folder import StateFolder, state_folder
from workshop_lib.settings import Settings

# jsonschema, which nbformat imports, checks no URIs without them: reading their grammars takes each
# process a second.
sys.modules |= {"rfc3987_syntax": None, "rfc3986_validator": None}

FOREIGN = {name.upper() for name in Settings.model_fields} | {"WORKSHOP_CONFIG"}


LONGEST_FIRST = (
    "notebooks/test_execution.py",
    "cloud/test_on_aws.py",
    "faults/test_engines.py",
    "load/",
    "cloud/",
    "notebooks/",
    "test_surroundings.py",
    "exercises/",
    "faults/",
    "dsql/",
)
"""Files and folders by the time that they take, from minutes to half a minute.

Begun last, one of them would leave the other workers without work.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""

    def rank(item: pytest.Item) -> int:
        name = item.path.relative_to(Path(__file__).parent).as_posix()
        return next(
            (n for n, begin in enumerate(LONGEST_FIRST) if name.startswith(begin)),
            len(LONGEST_FIRST),
        )

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateFolder]:
    """A state folder for this session: the learner's own engines and settings are left alone."""
    folder = state_folder(tmp_path_factory.mktemp("state with a space"))
    settings = tmp_path_factory.mktemp("settings") / "none.toml"
    settings.write_text("")
    before = dict(os.environ)
    for name in FOREIGN:
        os.environ.pop(name, None)
    os.environ |= {
        "WORKSHOP_STATE_DIR": str(folder.path.parent),
        "WORKSHOP_LINGER_SECONDS": "0",
        "WORKSHOP_CONFIG": str(settings),
        "TQDM_DISABLE": "1",
    }
    yield folder
    local.reset(folder)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Interrupts arrive, here and in what is begun here, also by fixtures that many tests share.

    A shell switches them off for what it starts in the background.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def models_are_read_once() -> Iterator[None]:
    """Keep what botocore reads of a service; each of its sessions would read megabytes anew."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(JSONFileLoader().load_file)
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))
        yield


@pytest.fixture(scope="session")
def shared(state: StateFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """One open workshop, in a namespace of its own, for all tests that only use it."""
    workshop = open_workshop(
        "tests",
        workshop_namespace=f"test_{secrets.token_hex(4)}",
        workshop_result_file=tmp_path_factory.mktemp("result") / "tests.json",
        dsql_pool_min=2,
        dsql_pool_max=20,
        dsql_pool_timeout=5.0,
    )
    yield workshop
    workshop.wipe()
    workshop.close()


@pytest.fixture
def ws(shared: Workshop) -> Iterator[Workshop]:
    """The open workshop with no keys in its cache."""
    shared.clear_cache()
    yield shared
    shared.clear_cache()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without a single setting of the workshop, and an empty settings file."""
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    empty = tmp_path / "workshop.toml"
    empty.write_text("")
    monkeypatch.setenv("WORKSHOP_CONFIG", str(empty))
    return monkeypatch


@pytest.fixture
def aws_environment(clean_environment: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Sets variables for AWS, beside keys that sign and open nothing; those of others are gone."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        clean_environment.delenv(name)

    def change(**variables: str) -> None:
        for name, value in {
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
            "AWS_CONFIG_FILE": str(tmp_path / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
            **variables,
        }.items():
            clean_environment.setenv(name, value)

    return change
