"""Answers to the exercises of notebook 11: right ones, and wrong ones with what they are told."""

import contextlib


def lindley(arrivals, service):
    found, free = [], 0.0
    for arrival in arrivals:
        free = max(arrival, free) + service
        found.append(free - arrival)
    return found


def by_waiting(arrivals, service):
    waiting, last = 0.0, None
    for arrival in arrivals:
        waiting = 0.0 if last is None else max(0.0, waiting + service - (arrival - last))
        last = arrival
        yield waiting + service


def from_sending(arrivals, service):
    return [service for _ in arrivals]


def in_the_queue(arrivals, service):
    return [wait - service for wait in lindley(arrivals, service)]


def never_idle(arrivals, service):
    first = arrivals[0] if arrivals else 0.0
    return [first + (n + 1) * service - at for n, at in enumerate(arrivals)]


def each(messages, handle):
    failures = []
    for message in messages:
        try:
            handle(message["body"])
        except Exception:  # noqa: BLE001 -- whatever it is
            failures.append({"itemIdentifier": message["messageId"]})
    return {"batchItemFailures": failures}


def the_whole_message(messages, handle):
    return each([{**message, "body": message} for message in messages], handle)


def misspelt(messages, handle):
    return each([{"body": m["text"], "messageId": m["messageId"]} for m in messages], handle)


def first_only(messages, handle):
    for message in messages:
        handle(message["body"])
        return {"batchItemFailures": []}
    return {"batchItemFailures": []}


def no_catch(messages, handle):
    for message in messages:
        handle(message["body"])
    return {"batchItemFailures": []}


def hides_failures(messages, handle):
    for message in messages:
        with contextlib.suppress(Exception):
            handle(message["body"])
    return {"batchItemFailures": []}


def a_list(messages, handle):
    return each(messages, handle)["batchItemFailures"]


def tries_twice(messages, handle):
    each(messages, handle)
    return each(messages, handle)


def nothing_for_nothing(messages, handle):
    return each(messages, handle) if messages else None


RIGHT = {"11.1": [lindley, by_waiting], "11.2": [each]}
WRONG = {
    "11.1": [
        (from_sending, "counts from when it arrived"),
        (in_the_queue, "being served is part of it"),
        (never_idle, "does not begin before"),
    ],
    "11.2": [
        (first_only, "Does the loop end too soon"),
        (no_catch, "the whole batch counts as failed"),
        (hides_failures, "expected: ['id-1']"),
        (a_list, "Lambda wants"),
        (tries_twice, "was called 2 times for m0"),
        (the_whole_message, "the whole message"),
        (misspelt, "KeyError: 'text'"),
        (nothing_for_nothing, "An empty batch"),
    ],
}
