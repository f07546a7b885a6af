"""The pool alone, with connections that are only numbers of themselves."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from workshop_lib import connections as module
from workshop_lib.connections import Pool
from workshop_lib.errors import PoolTimeoutError


class Line:
    """A connection: which one, and whether it is closed or has become unusable."""

    def __init__(self, number):
        self.number, self.closed, self.broken = number, False, False

    def close(self):
        self.closed = True

    def is_usable(self):
        return not self.broken


@pytest.fixture
def make():
    """Makes a pool, and keeps a list of all that it has opened."""

    def make(*, keep=1, limit=2, timeout_s=0.05, connect=None):
        opened = []

        def open_one():
            opened.append(Line(len(opened)))
            return opened[-1]

        return Pool(connect or open_one, keep=keep, limit=limit, timeout_s=timeout_s), opened

    return make


def test_the_one_that_was_used_last_is_lent_first_and_a_broken_one_replaced(make):
    pool, opened = make(keep=2)
    first, second = pool.take(), pool.take()
    pool.give(first, fit=True)
    pool.give(second, fit=True)
    lease = pool.take()
    assert lease.connection is opened[1]
    pool.give(lease, fit=True)
    opened[1].broken = True
    assert pool.take().connection is opened[0]
    assert (opened[1].closed, len(opened)) == (True, 2)


def test_one_that_is_not_fit_is_closed_and_its_place_is_free(make):
    pool, opened = make(limit=1)
    for number in range(3):
        lease = pool.take()
        assert lease.connection.number == number
        pool.give(lease, fit=False)
    assert [line.closed for line in opened] == [True] * 3


def test_whoever_finds_all_in_use_waits_for_one_and_is_told_who_holds_them(make):
    pool, opened = make(limit=1, timeout_s=60)
    held = pool.take()
    with ThreadPoolExecutor(4) as threads:

        def use(_):
            lease = pool.take()
            pool.give(lease, fit=True)
            return lease

        waiting = [threads.submit(use, n) for n in range(20)]
        pool.give(held, fit=True)
        assert [one.result(60).since > 0 for one in waiting] == [True] * 20
    assert len(opened) == 1
    short, _ = make(limit=1)
    holder = threading.Thread(target=lambda: kept.append(short.take()), name="the slow report")
    kept = []
    holder.start()
    holder.join()
    with pytest.raises(PoolTimeoutError, match=r"The only connection .* 0\.05 s.*a thread that en"):
        short.take()


def test_what_cannot_be_opened_takes_no_place(make):
    tries = []

    def refuse():
        tries.append(1)
        raise ConnectionError

    pool, _ = make(limit=1, connect=refuse)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            pool.take()
    assert len(tries) == 3


def test_a_use_that_is_forgotten_takes_no_place(make):
    pool, _ = make(limit=1)
    pool.take()  # as where an Interrupt comes before anybody has it
    assert pool.take().connection.number == 1


def test_a_surge_opens_each_connection_once_and_leaves_few_when_it_is_over(make, monkeypatch):
    pool, opened = make(keep=2, limit=30, timeout_s=60)

    def surge():
        leases = [pool.take() for _ in range(30)]
        for lease in leases:
            pool.give(lease, fit=True)

    for _ in range(20):
        surge()
    assert len(opened) == 30
    assert not any(line.closed for line in opened)
    monkeypatch.setattr(module, "SURPLUS_S", -1)
    pool.give(pool.take(), fit=True)
    assert sum(not line.closed for line in opened) == 2


def test_a_closed_pool_closes_what_is_idle_at_once_and_what_is_lent_on_its_return(make):
    pool, opened = make(keep=2)
    lent, idle = pool.take(), pool.take()
    pool.give(idle, fit=True)
    pool.close()
    assert [line.closed for line in opened] == [False, True]
    pool.give(lent, fit=True)
    assert opened[0].closed
