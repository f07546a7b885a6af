"""Notebook 13: a batch of which any part can fail, for any reason."""

from __future__ import annotations

import threading

from workshop_lib.exercises.check import Check, Recorder, say_error

ERRORS = {"m0": ValueError, "m1": ValueError, "m2": KeyError, "m3": TimeoutError}
"""What `handle` raises for which message."""
IDS = {"m0": "id-7f", "m1": "id-c2", "m2": "id-09", "m3": "id-e4"}
MESSAGES = [{"messageId": IDS[body], "body": body} for body in ERRORS]


def process_batch(check: Check) -> None:
    """Batches in which none, some, the first, the last and all messages fail, and an empty one."""
    coped: list[Exception] = []
    for [failing] in check.table.cases:
        _try_batch(check, check.value(failing), coped)
    check.judge("empty", got=check.call([], print, shown=check.say("no_messages")))
    _interrupt(check)


def _try_batch(check: Check, failing: list[str], coped: list[Exception]) -> None:
    """Let these messages fail; what the answer coped with is added to that of earlier batches."""

    def fail_for_some(body: object) -> None:
        if body in failing:
            coped.append(ERRORS[str(body)](f"{body} cannot be processed"))
            raise coped[-1]

    handle = Recorder(fail_for_some)
    check.facts["call"] = check.say("batch", failing=", ".join(failing) or "none")
    outcome = check.attempt([dict(message) for message in MESSAGES], handle)
    if outcome.error is not None:
        earlier = [say_error(error) for error in coped if error is not outcome.error]
        if len(earlier) < len(coped):
            check.judge("stopped", outcome.error, error=say_error(outcome.error), earlier=earlier)
        check.stop(outcome.error)
    check.facts |= {"handled": [body for [body] in handle.calls], "messages": MESSAGES}
    try:
        listed = sorted(one["itemIdentifier"] for one in outcome.value["batchItemFailures"])
    except (TypeError, KeyError):
        listed = None
    expected = sorted(IDS[body] for body in failing)
    check.judge("batch", got=outcome.value, listed=listed, expected=expected)


def _interrupt(check: Check) -> None:
    """An Interrupt while a message is handled has to end the answer."""
    main, interrupts = threading.get_ident(), 0

    def interrupted(_: object) -> None:
        nonlocal interrupts
        if threading.get_ident() == main:  # no other thread is ever interrupted
            interrupts += 1
            raise KeyboardInterrupt

    try:
        check.attempt([dict(message) for message in MESSAGES], interrupted)
    except KeyboardInterrupt:
        return
    check.judge("interrupted", interrupts=interrupts)


JUDGES = {"13.2": process_batch}
