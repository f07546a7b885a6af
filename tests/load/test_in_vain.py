"""A message that nobody can work off ends in the dead-letter queue."""

import pytest

from workshop_lib.errors import WorkshopError
from workshop_lib.load.drivers import LocalWorkers
from workshop_lib.load.in_vain import deliver_in_vain
from workshop_lib.load.means import Equipment
from workshop_lib.load.mixed import Queue

BAD = {"run": 1, "number": 0, "action": "DANCE"}


@pytest.fixture(scope="module")
def one(shop):
    with LocalWorkers(Equipment(shop.database.endpoint, shop.namespace), at_once=1) as one:
        yield one


@pytest.fixture
def open_queue(shop):
    opened = []

    def open_queue(visibility_timeout_s, max_receives):
        urls = shop.open_queue(
            "in-vain", visibility_timeout_s=visibility_timeout_s, max_receives=max_receives
        )
        opened.extend(urls)
        return Queue(shop.sqs, *urls)

    yield open_queue
    for url in opened:
        shop.sqs.delete_queue(QueueUrl=url)


def held(shop, url):
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = shop.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(found[name]) for name in names)


def test_it_is_delivered_so_many_times_then_set_aside_and_both_queues_are_left_empty(
    shop, one, open_queue
):
    queue = open_queue(1, 2)
    rows = deliver_in_vain(queue, one, BAD)
    assert list(rows["received from"]) == ["the queue", "the queue", "the dead-letter queue"]
    assert list(rows["delivery"]) == ["1", "2", ""]
    assert rows["seconds"].is_monotonic_increasing
    assert rows["seconds"][1] >= 1
    assert held(shop, queue.url) == held(shop, queue.dead) == 0


def test_where_it_would_take_too_long_that_is_said_and_nothing_is_sent(shop, one, open_queue):
    queue, said = open_queue(720, 3), []
    assert len(deliver_in_vain(queue, one, BAD, say=said.append)) == 0
    assert "hides a message for 720 s" in said[0]
    assert "36 minutes" in said[0]
    assert held(shop, queue.url) == 0


def test_a_message_that_can_be_worked_off_is_the_wrong_one(shop, one, open_queue):
    queue = open_queue(1, 2)
    with pytest.raises(WorkshopError, match="Use one that fails"):
        deliver_in_vain(queue, one, BAD | {"action": "SELECT"})
    assert held(shop, queue.url) == 0
