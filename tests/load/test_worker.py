"""A worker serves several namespaces, each with connections of its own, and keeps few of them."""

import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.load import means
from workshop_lib.load.means import Equipment
from workshop_lib.load.worker import Worker


@pytest.fixture
def alone(shop):
    one = Worker(Equipment(shop.database.endpoint, shop.namespace))
    yield one
    one.close()


def ping(worker, namespace):
    return worker.do({"job": "ping", "namespace": namespace})


def test_a_job_that_names_no_namespace_is_for_the_workers_own(shop, alone):
    own = alone.means
    assert ping(alone, "") == ping(alone, shop.namespace) == {"ready": True}
    assert alone.means is own
    assert own.namespace == shop.namespace
    assert own.database.stats().connections == 1


@pytest.mark.parametrize("namespace", ["Upper", "a-b", 'a"; DROP', "a" * 41, "a\n", " ", "1a"])
def test_what_is_no_namespace_is_refused(alone, namespace):
    with pytest.raises(WorkshopError, match=r"no job.*namespace"):
        ping(alone, namespace)
    body = f'{{"run": 1, "number": 0, "action": "SELECT", "namespace": "{namespace}"}}'
    answer = alone.do({"Records": [{"messageId": "m", "body": body}]})
    assert answer["batchItemFailures"] == [{"itemIdentifier": "m"}]


def test_of_many_namespaces_the_latest_are_kept_and_the_others_closed(shop, alone, monkeypatch):
    closed = []
    close = means.Means.close
    monkeypatch.setattr(
        means.Means, "close", lambda self: (closed.append(self.namespace), close(self))
    )
    for number in range(means.MOST_NAMESPACES):
        ping(alone, f"run_{number}")
    ping(alone, "run_0")  # in use again
    ping(alone, "another")
    assert closed == ["run_1"]
    ping(alone, "run_1")
    assert closed == ["run_1", "run_2"]
