"""The exercises of notebook 11: waits that are not hidden, and batches that fail in part."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from workshop_lib.exercises.engine import Exercise, Wrong, call, function_of, show

LINES: tuple[tuple[list[float], float], ...] = (
    ([], 1.0),
    ([0.0, 10.0, 20.0], 1.0),
    ([0.0, 1.0, 2.0, 3.0], 1.0),
    ([0.0, 0.0, 0.0], 2.0),
    ([0.0, 1.0, 2.0, 3.0, 4.0], 1.5),
    ([0.0, 1.0, 2.0, 30.0, 31.0], 3.0),
    ([5.0, 5.5, 9.0], 2.0),
)
ERRORS: dict[str, type[Exception]] = {
    "m0": ValueError,
    "m1": ValueError,
    "m2": KeyError,
    "m3": TimeoutError,
}
"""What `handle` raises for which message."""


def _waits(arrivals: Sequence[float], service: float) -> list[float]:
    found, free = [], -math.inf
    for at in arrivals:
        free = max(at, free) + service
        found.append(free - at)
    return found


def _from_sending(arrivals: Sequence[float], service: float) -> list[float]:
    return [service] * len(arrivals)


def _without_service(arrivals: Sequence[float], service: float) -> list[float]:
    return [wait - service for wait in _waits(arrivals, service)]


def _never_idle(arrivals: Sequence[float], service: float) -> list[float]:
    first = arrivals[0] if arrivals else 0.0
    return [first + (n + 1) * service - at for n, at in enumerate(arrivals)]


def _when_done(arrivals: Sequence[float], service: float) -> list[float]:
    return [at + wait for at, wait in zip(arrivals, _waits(arrivals, service), strict=True)]


SUSPECTS: dict[str, Callable[[Sequence[float], float], list[float]]] = {
    "That counts from when a request is served. It counts from when it arrived.": _from_sending,
    "The time until the answer is there is asked for: being served is part of it.": (
        _without_service
    ),
    "A server that is free does not begin before the next request arrives.": _never_idle,
    "That is when each was done. How long had it waited by then?": _when_done,
}


def check_waits(answer: object, _: object) -> None:
    """Lines that never form, that grow, and that end."""
    function = function_of(answer, "waits", "arrivals", "service")
    tried = []
    for arrivals, service in LINES:
        shown = f"`waits({arrivals}, {service})`"
        tried.append((arrivals, service, shown, call(shown, function, list(arrivals), service)))
    for arrivals, service, shown, got in tried:
        expected = _waits(arrivals, service)
        if not _alike(got, expected):
            words = next(
                (said for said, rule in SUSPECTS.items()
                 if all(_alike(g, rule(a, s)) for a, s, _, g in tried)),
                "Follow the server: when is it free again after each request?",
            )  # fmt: skip
            raise Wrong(f"{shown} returned `{show(got)}`; expected: {expected}. {words}")


class _Handler:
    """A `handle` that notes what it is called with, and raises for some messages."""

    def __init__(self, failing: set[str]) -> None:
        self.failing = failing
        self.handled: list[object] = []
        self.raised: list[Exception] = []

    def __call__(self, body: object) -> None:
        self.handled.append(body)
        if body in list(self.failing):  # not in the set: a dict has no place there
            self.raised.append(ERRORS[str(body)](f"{body} cannot be worked off"))
            raise self.raised[-1]


def check_process_batch(answer: object, _: object) -> None:
    """Batches in which none, some, the first, the last and all messages fail, for any reason."""
    function = function_of(answer, "process_batch", "messages", "handle")
    borne: list[Exception] = []
    for failing in (set[str](), {"m1"}, {"m0"}, {"m3"}, {"m0", "m2"}, set(ERRORS)):
        handle = _Handler(failing)
        messages = [{"messageId": f"id-{n}", "body": body} for n, body in enumerate(ERRORS)]
        said = f"With {', '.join(sorted(failing)) or 'none'} of m0 to m3 failing,"
        try:
            got = function(messages, handle)
        except Exception as error:
            if error not in handle.raised:
                raise
            raise Wrong(_stopped(said, error, [*borne, *handle.raised[:-1]])) from None
        borne += handle.raised
        _check_handled(handle.handled, messages, said)
        _check_failures(got, {f"id-{body[1:]}" for body in failing}, said)
    if function([], print) != {"batchItemFailures": []}:
        raise Wrong('An empty batch has no failures: `{"batchItemFailures": []}`.')


def _stopped(said: str, error: Exception, borne: Sequence[Exception]) -> str:
    found = f"{said} `process_batch` stopped with {show(error)}"
    if borne:
        return (
            f"{found}, and had borne {show(borne[-1])}. A message can fail for any reason: catch "
            "`Exception`, not one kind of it."
        )
    return f"{found}: the whole batch counts as failed then, and all of it is delivered again."


def _check_handled(handled: list[object], messages: list[dict[str, str]], said: str) -> None:
    bodies: list[object] = [message["body"] for message in messages]
    if handled == bodies:
        return
    if any(message in handled for message in messages):
        raise Wrong(
            f"{said} `handle` was called with `{show(handled[0])}`, the whole message. It works "
            'off what is in the message: `message["body"]`.'
        )
    twice = [body for body in bodies if handled.count(body) > 1]
    if twice:
        raise Wrong(
            f"{said} `handle` was called {handled.count(twice[0])} times for {twice[0]}: what it "
            "does is then done as often. Try each message once; the queue delivers again what "
            "failed."
        )
    raise Wrong(
        f"{said} `handle` was called for {show(handled)}; every message has to be tried, once. "
        "Does the loop end too soon?"
    )


def _check_failures(got: Any, expected: set[str], said: str) -> None:
    try:
        listed = [failure["itemIdentifier"] for failure in got["batchItemFailures"]]
    except (TypeError, KeyError):
        raise Wrong(
            f"{said} `process_batch` returned `{show(got)}`. Lambda wants "
            '`{"batchItemFailures": [{"itemIdentifier": …}, …]}`; of anything else it takes the '
            "whole batch as done or as failed."
        ) from None
    if sorted(listed) != sorted(expected):
        raise Wrong(
            f"{said} these were returned as failed: {listed}; expected: {sorted(expected)}. It is "
            "the `messageId` by which the queue knows a message."
        )


def _alike(got: object, expected: Sequence[float]) -> bool:
    try:
        values = [float(value) for value in got]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        return False
    return len(values) == len(expected) and all(map(_close, values, expected))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


EXERCISES = (
    Exercise(
        id="11.1",
        title="Waits that are not hidden",
        answer_name="waits",
        judge=check_waits,
        hints=(
            "Keep in mind when the server is free. When does it begin with the next request?",
            "It begins when the request is there and the server is free: the later of the two.",
            "`free = max(arrival, free) + service`, and the wait is `free - arrival`.",
        ),
        solution_source="""def waits(arrivals, service):
    found, free = [], 0.0
    for arrival in arrivals:
        free = max(arrival, free) + service
        found.append(free - arrival)
    return found
""",
        praise=(
            "Lindley's recursion. Arrivals only a little faster than the service, and each waits "
            "longer than the one before: no percentile of service times would show it."
        ),
    ),
    Exercise(
        id="11.2",
        title="A batch that fails in part",
        answer_name="process_batch",
        judge=check_process_batch,
        hints=(
            "What becomes of the messages after the one that fails?",
            "Catch what `handle` raises, for each message, and go on with the next.",
            'Collect `{"itemIdentifier": message["messageId"]}`, and return the list at the end.',
        ),
        solution_source="""def process_batch(messages, handle):
    failures = []
    for message in messages:
        try:
            handle(message["body"])
        except Exception:
            failures.append({"itemIdentifier": message["messageId"]})
    return {"batchItemFailures": failures}
""",
        praise=(
            "Only what failed is delivered again. (The function has to say so on AWS: "
            "ReportBatchItemFailures in its event source mapping.)"
        ),
    ),
)
