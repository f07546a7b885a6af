"""Answers to the exercises of notebook 06: right ones, and wrong ones with what they are told."""

import functools
import threading
from concurrent.futures import Future

from redis.exceptions import WatchError


def not_shared(load):
    return load


def a_cache(load):
    return functools.cache(load)


def promise(load, forget=True, note=lambda error: error):
    lock, under_way = threading.Lock(), {}

    def fetch(key):
        with lock:
            first = key not in under_way
            flight = under_way.setdefault(key, Future())
        if not first:
            return flight.result()
        try:
            value = load(key)
        except Exception as error:
            if forget:
                del under_way[key]
            flight.set_exception(note(error))
            raise
        if forget:
            del under_way[key]
        flight.set_result(value)
        return value

    return fetch


def an_error_is_remembered(load):
    under_way = {}

    def fetch(key):
        mine = Future()
        flight = under_way.setdefault(key, mine)
        if flight is mine:
            try:
                flight.set_result(load(key))
                del under_way[key]
            except ConnectionError as error:
                flight.set_exception(error)
        return flight.result()

    return fetch


def an_error_wakes_nobody(load):
    under_way = {}

    def fetch(key):
        mine = Future()
        flight = under_way.setdefault(key, mine)
        if flight is not mine:
            return flight.result()
        try:
            mine.set_result(load(key))
        finally:
            del under_way[key]
        return mine.result()

    return fetch


def an_error_stays_under_way(load):
    under_way = {}

    def fetch(key):
        mine = Future()
        flight = under_way.setdefault(key, mine)
        if flight is mine:
            flight.set_result(load(key))
            del under_way[key]
        return flight.result()

    return fetch


class Flight:
    def __init__(self):
        self.done = threading.Event()
        self.value = None


def with_event(load, keep=True, wait=True, otherwise=lambda *_: None):
    lock, under_way = threading.Lock(), {}

    def fetch(key):
        with lock:
            first = key not in under_way
            flight = under_way.setdefault(key, Flight())
        if not first:
            if wait:
                flight.done.wait()
            return flight.value if flight.value is not None else otherwise(load, key)
        try:
            value = load(key)
            if keep:
                flight.value = value
            return value
        finally:
            del under_way[key]
            flight.done.set()

    return fetch


def those_who_wait_get_none(load):
    return with_event(load, keep=False)


def none_is_no_answer(load):
    return with_event(load, otherwise=lambda load, key: load(key))


def an_error_is_none_for_the_others(load):
    return with_event(load)


def an_error_makes_all_try_again(load):
    under_way = {}

    def fetch(key):
        mine = Future()
        flight = under_way.setdefault(key, mine)
        if flight is mine:
            try:
                value = load(key)
            except Exception:
                del under_way[key]
                mine.set_result(None)
                raise
            del under_way[key]
            mine.set_result((value,))
        found = flight.result()
        return found[0] if found else load(key)

    return fetch


def another_error(load):
    return promise(load, note=lambda error: RuntimeError(f"load failed: {error}"))


def errors_are_swallowed(load):
    fetch = promise(load)

    def quiet(key):
        try:
            return fetch(key)
        except ConnectionError:
            return None

    return quiet


def looks_it_up_too_late(load):
    lock, under_way, values = threading.Lock(), {}, {}

    def fetch(key):
        with lock:
            first = key not in under_way
            done = under_way.setdefault(key, threading.Event())
        if first:
            values[key] = load(key)
            del under_way[key]
            done.set()
            return values.pop(key)
        done.wait()
        return values[key]

    return fetch


def one_flight_for_all_keys(load):
    asked = []
    shared = promise(lambda _: load(asked[0]))

    def fetch(key):
        asked.append(key)
        try:
            return shared("any key")
        finally:
            asked.remove(key)

    return fetch


def keys_wait_for_each_other(load):
    loading = threading.Lock()

    def one_at_a_time(key):
        with loading:
            return load(key)

    return promise(one_at_a_time)


def looks_then_enters(load):
    under_way = {}

    def fetch(key):
        flight = under_way.get(key)
        if flight is None:
            flight = under_way[key] = Future()
            try:
                outcome, end = load(key), flight.set_result
            except ConnectionError as error:
                outcome, end = error, flight.set_exception
            under_way.pop(key, None)
            end(outcome)
        return flight.result()

    return fetch


def forgets_the_key(load):
    return promise(lambda _: load("mars 4"))


def returns_nothing(load):
    def fetch(key):
        return load(key)


def no_load():
    return print


def deletes(valkey, lock, token):
    return bool(valkey.delete(lock))


def looks_then_deletes(valkey, lock, token):
    if valkey.get(lock) == token.encode():
        return bool(valkey.delete(lock))
    return False


def watch_error_goes_through(valkey, lock, token):
    with valkey.pipeline() as step:
        step.watch(lock)
        if step.get(lock) != token.encode():
            return False
        step.multi()
        step.delete(lock)
        return step.execute() == [1]


def bytes_and_text(valkey, lock, token):
    if valkey.get(lock) == token:
        return bool(valkey.delete(lock))
    return False


def bytes_have_no_encode(valkey, lock, token):
    return valkey.get(lock).decode() == token and bool(valkey.delete(lock))


def takes_and_puts_back(valkey, lock, token):
    found = valkey.getdel(lock)
    if found is None or found == token.encode():
        return found is not None
    valkey.set(lock, found, ex=60)
    return False


RENEW = """
local found = redis.call('GETDEL', KEYS[1])
if found == ARGV[1] then return 1 end
if found then redis.call('SET', KEYS[1], found) end
return 0
"""


def takes_and_puts_back_for_ever(valkey, lock, token):
    return bool(valkey.eval(RENEW, 1, lock, token))


def script(valkey, lock, token, compare="found == ARGV[1]"):
    text = f"local found = redis.call('GET', KEYS[1]) if {compare} then "
    text += "return redis.call('DEL', KEYS[1]) end return 0"
    return valkey.eval(text, 1, lock, token)


def token_in_the_script(valkey, lock, token):
    text = f"if redis.call('GET', KEYS[1]) == '{token}' then return redis.call('DEL', KEYS[1]) end"
    return bool(valkey.eval(text, 1, lock))


def says_nothing(valkey, lock, token):
    script(valkey, lock, token)


def nothing_instead_of_false(valkey, lock, token):
    return True if script(valkey, lock, token) else None


def makes_one(valkey, lock, token):
    released = bool(script(valkey, lock, token))
    if not released:
        valkey.set(lock, "free", px=1000, nx=True)
    return released


def no_token(valkey, lock):
    return bool(valkey.delete(lock))


def plain_promise(load):
    return promise(load)


class SingleFlight:
    """Threads wait on a condition, and look again and again whether it is over."""

    def __init__(self, load):
        self.load = load
        self.changed = threading.Condition()
        self.under_way = {}

    def __call__(self, key):
        with self.changed:
            if key in self.under_way:
                flight = self.under_way[key]
                self.changed.wait_for(lambda: flight)
                return self.end(flight)
            flight = self.under_way[key] = []
        try:
            outcome = (self.load(key), None)
        except ConnectionError as error:
            outcome = (None, error)
        with self.changed:
            del self.under_way[key]
            flight.append(outcome)
            self.changed.notify_all()
        return self.end(flight)

    @staticmethod
    def end(flight):
        value, error = flight[0]
        if error is not None:
            raise error
        return value


def watches(valkey, lock, token):
    with valkey.pipeline() as step:
        try:
            step.watch(lock)
            if step.get(lock) != token.encode():
                return False
            step.multi()
            step.delete(lock)
            return step.execute() == [1]
        except WatchError:
            return False


def watches_and_tries_again(valkey, lock, token):
    def give_back(step):
        mine = step.get(lock) == token.encode()
        step.multi()
        if mine:
            step.delete(lock)

    return bool(valkey.transaction(give_back, lock))


RIGHT = {
    "06.1": [plain_promise, SingleFlight],
    "06.2": [
        watches,
        watches_and_tries_again,
    ],
}
WRONG = {
    "06.1": [
        (not_shared, "`load` was called 20 times. Expected: once. A thread that finds a load"),
        (a_cache, "This is no cache"),
        (an_error_is_remembered, "raised the same error once more"),
        (an_error_wakes_nobody, "one of them has not come back"),
        (an_error_stays_under_way, "the next call of `fetch('mars')` has not come back"),
        (those_who_wait_get_none, "one of them returned `None`; expected: `'mars, load 1'`"),
        (none_is_no_answer, "`load` was called 20 times"),
        (an_error_is_none_for_the_others, "`None` came out of `fetch`"),
        (an_error_makes_all_try_again, "`load` was called 20 times"),
        (another_error, "`RuntimeError: load failed: the database is down` came out"),
        (errors_are_swallowed, "A fault must not look like an answer"),
        (looks_it_up_too_late, "one of them stopped with `KeyError: 'mars'`"),
        (one_flight_for_all_keys, "Only those who ask for the same key share a load"),
        (keys_wait_for_each_other, "Do you hold a lock while you load?"),
        (looks_then_enters, "at the very same moment. Both found no load"),
        (forgets_the_key, "called `load` with `['mars 4']`"),
        (returns_nothing, "returned `None`. Expected: a function"),
        (no_load, "The check calls `single_flight(load)`"),
    ],
    "06.2": [
        (deletes, "now a third can come in"),
        (looks_then_deletes, "Between `GET` and `DEL` of `release(valkey, lock, 'worker-1')`"),
        (watch_error_goes_through, "That error is the answer"),
        (bytes_and_text, "gives back bytes"),
        (bytes_have_no_encode, "nobody holds it, `release(valkey, lock, 'worker-1')` stopped with"),
        (takes_and_puts_back, "took the lock away with `GETDEL` and put it back later"),
        (takes_and_puts_back_for_ever, "took the lock's time to live away"),
        (token_in_the_script, "Is the token part of the script's text?"),
        (says_nothing, "Is there a `return` on this way?"),
        (nothing_instead_of_false, "nobody holds it, `release(valkey, lock, 'worker-1')` returned"),
        (makes_one, "has made one, with `'free'` in it"),
        (no_token, "The check calls `release(valkey, lock, token)`"),
    ],
}
