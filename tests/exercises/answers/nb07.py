"""Answers to the exercises of notebook 07: right ones, and wrong ones with what they are told."""

import random
import time
from itertools import count

import psycopg2
from psycopg2.errors import SerializationFailure


def limit(number):
    return min(0.1, 0.001 * 2**number)


def by_code(work, sleep):
    for number in count(1):
        try:
            return work()
        except psycopg2.Error as error:
            if error.pgcode != "40001" or number == 10:
                raise
        sleep(random.random() * limit(number))
    return None


def recursive(work, sleep, number=1):
    try:
        return work()
    except SerializationFailure:
        if number >= 10:
            raise
    sleep(random.uniform(0, limit(number)))
    return recursive(work, sleep, number + 1)


def retry(work, sleep, *, most=10, pause=None, catch=SerializationFailure):
    """Right, unless told otherwise."""
    for number in range(1, most + 1):
        try:
            return work()
        except catch:
            if number == most:
                raise
            sleep(pause(number) if pause else random.uniform(0, limit(number)))
    return None


def retry_if(work, sleep, is_conflict):
    """Right, unless told otherwise."""
    for number in range(1, 11):
        try:
            return work()
        except psycopg2.Error as error:
            if number == 10 or not is_conflict(error):
                raise
            sleep(random.uniform(0, limit(number)))
    return None


def no_retry(work, sleep):
    return work()


def forgets_the_value(work, sleep):
    retry(work, sleep)


def falsy_is_failure(work, sleep):
    for _ in range(10):
        if value := retry(work, sleep):
            return value
    return None


def eleven_attempts(work, sleep):
    return retry(work, sleep, most=11)


def for_ever(work, sleep):
    return retry(work, sleep, most=10**9)


def keeps_the_first_error(work, sleep):
    errors = []
    while len(errors) < 10:
        try:
            return work()
        except SerializationFailure as error:
            errors.append(error)
            if len(errors) < 10:
                sleep(random.uniform(0, limit(len(errors))))
    raise errors[0]


def sleeps_by_itself(work, sleep):
    return retry(work, time.sleep)


def sleeps_at_the_end(work, sleep):
    for number in range(1, 11):
        try:
            return work()
        except SerializationFailure as error:
            last = error
            sleep(random.uniform(0, limit(number)))
    raise last


def gives_up_in_silence(work, sleep):
    try:
        return retry(work, sleep)
    except SerializationFailure:
        return None


def retries_everything(work, sleep):
    return retry(work, sleep, catch=Exception)


def looks_at_the_text(work, sleep):
    return retry_if(work, sleep, lambda error: "OC000" in str(error))


def every_error_has_a_code(work, sleep):
    return retry_if(work, sleep, lambda error: error.pgcode.endswith("40001"))


def fixed_waits(work, sleep):
    return retry(work, sleep, pause=limit)


def equal_jitter(work, sleep):
    return retry(work, sleep, pause=lambda n: random.uniform(limit(n) / 2, limit(n)))


def cut_afterwards(work, sleep):
    return retry(work, sleep, pause=lambda n: min(0.1, random.uniform(0, 0.001 * 2**n)))


def text(work, sleep):
    return retry(work, sleep, pause=lambda n: str(limit(n)))


def no_cap(work, sleep):
    return retry(work, sleep, pause=lambda n: random.uniform(0, 0.001 * 2**n))


STEP = """
DELETE FROM exercise_log
 WHERE id IN (SELECT id FROM exercise_log WHERE day < %s LIMIT %s)
"""


def deleting(day, size=3000, statement=STEP):
    def step(cursor):
        cursor.execute(statement, (day, size))
        return cursor.rowcount

    return step


def by_ranges(database, day):
    bounds = database.query("SELECT min(id), max(id) FROM exercise_log WHERE day < %s", (day,))
    low, high = bounds[0]
    total = 0
    for first in range(low, high + 1, 3000) if low is not None else ():

        def step(cursor, first=first):
            cursor.execute(
                "DELETE FROM exercise_log WHERE day < %s AND id >= %s AND id < %s",
                (day, first, first + 3000),
            )
            return cursor.rowcount

        total += database.run_transaction(step)
    return total


def counts_first(database, day):
    total = database.query("SELECT count(*) FROM exercise_log WHERE day < %s", (day,))[0][0]
    while database.run_transaction(deleting(day)):
        pass
    return total


def all_at_once(database, day):
    def work(cursor):
        cursor.execute("DELETE FROM exercise_log WHERE day < %s", (day,))
        return cursor.rowcount

    return database.run_transaction(work)


def one_step(database, day):
    return database.run_transaction(deleting(day))


def counts_outside(database, day):
    counts = []

    def step(cursor):
        gone = deleting(day)(cursor)
        counts.append(gone)
        return gone

    while database.run_transaction(step):
        pass
    return sum(counts)


def the_day_itself(database, day):
    statement = STEP.replace("day < %s", "day <= %s")
    total = 0
    while gone := database.run_transaction(deleting(day, statement=statement)):
        total += gone
    return total


def everything(database, day):
    statement = STEP.replace("day < %s", "%s IS NOT NULL")
    while database.run_transaction(deleting(day, statement=statement)):
        pass
    return 0


def stepwise(database, step):
    """All steps until one finds nothing, and the sum of what they return."""
    total = 0
    while gone := database.run_transaction(step):
        total += gone
    return total


def day_in_the_text(database, day):
    statement = STEP.replace("day < %s", f"day < '{day}'").replace("%s", "3000")

    def step(cursor):
        cursor.execute(statement)
        return cursor.rowcount

    return stepwise(database, step)


def commits_by_itself(database, day):
    def step(cursor):
        gone = deleting(day)(cursor)
        cursor.connection.commit()
        return gone

    return stepwise(database, step)


RIGHT = {
    "07.1": [by_code, recursive],
    "07.2": [by_ranges, counts_first],
}
WRONG = {
    "07.1": [
        (no_retry, "called `work` once and let the conflict pass"),
        (forgets_the_value, "Expected: what `work()` returned, also if that is None or 0"),
        (falsy_is_failure, "was called 10 times in all. Expected: once"),
        (eleven_attempts, "was called 11 times in all. Expected: 10"),
        (for_ever, "more than 100 times"),
        (keeps_the_first_error, "there came that of attempt 1"),
        (sleeps_at_the_end, "`sleep` was called 10 times. Expected: 9"),
        (sleeps_by_itself, "Use the `sleep` that is handed in."),
        (gives_up_in_silence, "returned as if nothing had happened"),
        (retries_everything, "UniqueViolation (SQLSTATE 23505), and was tried again"),
        (looks_at_the_text, "look at the code, `error.pgcode`"),
        (every_error_has_a_code, "expected that very error, and there came AttributeError"),
        (fixed_waits, "it always waited for 0.002 s"),
        (equal_jitter, "Expected: any time between 0 and"),
        (cut_afterwards, "waits were exactly 0.1 s"),
        (no_cap, "keep to the limit"),
        (text, "expected a number of seconds"),
    ],
    "07.2": [
        (all_at_once, "One transaction changed more than 3,000 rows"),
        (one_step, "4,001 of them are left"),
        (counts_outside, "Are rows of an attempt that was undone counted, too?"),
        (the_day_itself, "only rows *before* that day are to go"),
        (everything, "of 5 rows of later days 0 are left"),
        (day_in_the_text, "The day is part of the statement's text: `"),
        (commits_by_itself, "`commit` would end the transaction of run_transaction"),
    ],
}
