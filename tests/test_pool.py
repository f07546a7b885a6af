"""The pool alone, with connections that are only numbers of themselves."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from workshop_lib import connections as module
from workshop_lib.connections import Lease, Pool
from workshop_lib.errors import PoolTimeoutError


class Line:
    """A connection: which one, and whether it is closed or has become unusable."""

    def __init__(self, number):
        self.number, self.closed, self.broken = number, False, False

    def close(self):
        self.closed = True

    def is_usable(self):
        return not self.broken

    def is_clean(self):
        return True


@pytest.fixture
def make():
    """Makes a pool, and keeps a list of all that it has opened."""

    def make(*, keep=1, limit=2, timeout_s=0.05, connect=None):
        opened = []

        def open_one():
            opened.append(Line(len(opened)))
            return opened[-1]

        return Pool(connect or open_one, keep, limit, timeout_s), opened

    return make


def take(pool):
    lease = Lease()
    pool.take(lease)
    return lease


def test_the_one_that_was_used_last_is_lent_first_and_a_broken_one_replaced(make):
    pool, opened = make(keep=2)
    for lease in [take(pool), take(pool)]:
        pool.give(lease, fit=True)
    lease = take(pool)
    assert lease.connection is opened[1]
    pool.give(lease, fit=True)
    opened[1].broken = True
    assert take(pool).connection is opened[0]
    assert (opened[1].closed, len(opened)) == (True, 2)


def test_one_that_is_not_fit_is_closed_and_its_place_is_free(make):
    pool, opened = make(limit=1)
    for number in range(3):
        lease = take(pool)
        assert lease.connection.number == number
        pool.give(lease, fit=False)
    assert [line.closed for line in opened] == [True] * 3


def test_a_thread_that_finds_all_in_use_waits_for_one_and_is_told_who_holds_them(make):
    pool, opened = make(limit=1, timeout_s=60)
    held = take(pool)
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(lambda: pool.give(take(pool), fit=True)) for _ in range(20)]
        pool.give(held, fit=True)
        assert [one.result(60) for one in waiting] == [None] * 20
    assert len(opened) == 1
    short, _ = make(limit=1)
    kept = []
    holder = threading.Thread(target=lambda: kept.append(take(short)))
    holder.start()
    holder.join()
    with pytest.raises(PoolTimeoutError, match=r"The only connection .* 0\.05 s.*a thread that en"):
        take(short)


def test_what_cannot_be_opened_takes_no_place(make):
    tries = []

    def refuse():
        tries.append(1)
        raise ConnectionError

    pool, _ = make(limit=1, connect=refuse)
    for _ in range(3):
        lease = Lease()
        with pytest.raises(ConnectionError):
            pool.take(lease)
        pool.give(lease, fit=True)
    assert len(tries) == 3


def test_a_use_that_is_forgotten_takes_no_place(make):
    pool, _ = make(limit=1)
    take(pool)  # as where an Interrupt ends the function that was about to give it back
    assert take(pool).connection.number == 1


def test_a_surge_opens_each_connection_once_and_leaves_few_when_it_is_over(make, monkeypatch):
    pool, opened = make(keep=2, limit=30, timeout_s=60)
    for _ in range(20):
        for lease in [take(pool) for _ in range(30)]:
            pool.give(lease, fit=True)
    assert len(opened) == 30
    assert not any(line.closed for line in opened)
    monkeypatch.setattr(module, "SURPLUS_S", -1)
    pool.give(take(pool), fit=True)
    assert sum(not line.closed for line in opened) == 2


def test_a_closed_pool_closes_what_is_idle_at_once_and_what_is_lent_on_its_return(make):
    pool, opened = make(keep=2)
    lent, idle = take(pool), take(pool)
    pool.give(idle, fit=True)
    pool.close()
    assert [line.closed for line in opened] == [False, True]
    pool.give(lent, fit=True)
    assert opened[0].closed
