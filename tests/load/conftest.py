"""What all tests of load tests need: one set of tables, of workers and of queues."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest

from workshop_lib import dataset
from workshop_lib.load.drivers import LocalWorkers
from workshop_lib.load.mixed import Queue
from workshop_lib.load.worker import ClientConfig, Worker

sys.path.append(str(Path(__file__).parent))  # the stand-in is no part of the package
from helpers import Here, worker_processes
from lambda_runtime import allow_writing, build, unpack


@pytest.fixture(scope="module")
def shop(shared):
    """The open workshop with the tables of load tests."""
    for name in ("type", "transactions"):
        shared.load_table(name)
    dataset.create_table(shared.database, "business_events")
    return shared


@pytest.fixture(scope="session")
def config(shared):
    """What workers are given: the database, and where metrics go."""
    return ClientConfig(
        shared.database.endpoint,
        shared.namespace,
        messaging=shared.messaging,
    )


@pytest.fixture(scope="session")
def pair(config):
    """Two worker processes; one that is killed is replaced."""
    with LocalWorkers(config, at_once=2) as pair:
        yield pair


@pytest.fixture
def alone(config):
    """A worker in this process."""
    one = Worker(config)
    yield one
    one.close()


@pytest.fixture
def here(shop, alone):
    """A driver whose one worker is in this process."""
    return Here(alone)


@pytest.fixture
def queue(shop):
    """An empty queue whose messages are hidden for a second, and delivered twice at most."""
    opened = shop.open_queue("load", visibility_timeout_s=1, max_receives=2)
    yield Queue(shop.sqs, *opened)
    for url in opened:
        shop.sqs.delete_queue(QueueUrl=url)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The load worker's package, for this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "1")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "15")
        return build(tmp_path_factory.mktemp("package") / "deep" / "worker.zip")


@pytest.fixture(scope="session")
def task(built, tmp_path_factory):
    """The package as Lambda unpacks it."""
    folder = unpack(built, tmp_path_factory.mktemp("task"))
    yield folder
    allow_writing(folder)


@pytest.fixture
def interrupt():
    """Press Ctrl-C, from any thread."""
    main = threading.main_thread().ident
    return lambda: signal.pthread_kill(main, signal.SIGINT)


@pytest.fixture
def kill_a_worker(pair):
    """Kill one of the two worker processes."""

    def kill():
        worker_processes()[0].kill()

    return kill
