"""What all tests of load tests need: one set of tables, of workers and of queues."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import pytest

from workshop_lib import dataset
from workshop_lib.load import ClientConfig, LocalWorkers, Queue
from workshop_lib.load.worker import Worker

sys.path.append(str(Path(__file__).parent))
from helpers import Here


@pytest.fixture(scope="module")
def shop(shared):
    """The open workshop with the tables of load tests."""
    for name in ("type", "transactions"):
        shared.load_table(name)
    dataset.create_table(shared.database, "business_events")
    return shared


@pytest.fixture(scope="session")
def config(shared):
    """What workers connect to: the database, and where metrics go."""
    return ClientConfig(shared.database.endpoint, shared.namespace, messaging=shared.messaging)


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


@pytest.fixture
def interrupt():
    """Press Ctrl-C, from any thread."""
    main = threading.main_thread().ident
    return lambda: signal.pthread_kill(main, signal.SIGINT)
