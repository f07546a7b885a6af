"""Answers to the exercises of notebook 07: right ones, and wrong ones with what they are told."""

import random
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


def no_retry(work, sleep):
    return work()


def forgets_the_value(work, sleep):
    retry(work, sleep)


def falsy_is_failure(work, sleep):
    for _ in range(10):
        if value := retry(work, sleep):
            return value
    return None


def nine_attempts(work, sleep):
    return retry(work, sleep, most=9)


def eleven_attempts(work, sleep):
    return retry(work, sleep, most=11)


def for_ever(work, sleep):
    return retry(work, sleep, most=10**9)


def sleeps_at_the_end(work, sleep):
    for number in range(1, 11):
        try:
            return work()
        except SerializationFailure as error:
            last = error
            sleep(random.uniform(0, limit(number)))
    raise last


def sleeps_before_each_attempt(work, sleep):
    sleep(0)
    return retry(work, sleep)


def gives_up_in_silence(work, sleep):
    try:
        return retry(work, sleep)
    except SerializationFailure:
        return None


def an_error_of_its_own(work, sleep):
    try:
        return retry(work, sleep)
    except SerializationFailure as error:
        raise RuntimeError("too many conflicts") from error


def retries_everything(work, sleep):
    return retry(work, sleep, catch=Exception)


def retries_all_database_errors(work, sleep):
    return retry(work, sleep, catch=psycopg2.Error)


def fixed_waits(work, sleep):
    return retry(work, sleep, pause=limit)


def no_waits(work, sleep):
    return retry(work, sleep, pause=lambda _: 0)


def equal_jitter(work, sleep):
    return retry(work, sleep, pause=lambda n: random.uniform(limit(n) / 2, limit(n)))


def no_cap(work, sleep):
    return retry(work, sleep, pause=lambda n: random.uniform(0, 0.001 * 2**n))


def does_not_grow(work, sleep):
    return retry(work, sleep, pause=lambda _: random.uniform(0, 0.1))


def milliseconds(work, sleep):
    return retry(work, sleep, pause=lambda n: 1000 * random.uniform(0, limit(n)))


def counts_from_zero(work, sleep):
    return retry(work, sleep, pause=lambda n: random.uniform(0, limit(n - 1)))


STEP = """
DELETE FROM exercise_log
 WHERE id IN (SELECT id FROM exercise_log WHERE day < %s LIMIT %s)
"""


def deleting(day, size=3000, statement=STEP):
    def step(cursor):
        cursor.execute(statement, (day, size))
        return cursor.rowcount

    return step


def small_steps(database, day):
    total = 0
    while True:
        gone = database.run_transaction(deleting(day, 1000))
        total += gone
        if gone < 1000:
            return total


def by_ranges(database, day):
    low, high = database.query("SELECT min(id), max(id) FROM exercise_log WHERE day < %s", (day,))[
        0
    ]
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


def steps_in_one_transaction(database, day):
    def work(cursor):
        total = 0
        while gone := deleting(day)(cursor):
            total += gone
        return total

    return database.run_transaction(work)


def one_step(database, day):
    return database.run_transaction(deleting(day))


def three_steps_without_a_look(database, day):
    return sum(database.run_transaction(deleting(day, 2000)) for _ in range(3))


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


def truncates(database, day):
    database.query("TRUNCATE exercise_log")
    return 0


def returns_nothing(database, day):
    while database.run_transaction(deleting(day)):
        pass


def returns_the_last_step(database, day):
    last = 0
    while gone := database.run_transaction(deleting(day)):
        last = gone
    return last


def returns_true(database, day):
    small_steps(database, day)
    return True


def commits_nothing(database, day):
    total = 0
    with database.connection() as connection:
        connection.autocommit = False
        with connection.cursor() as cursor:
            while total < 3000 and (gone := deleting(day, 1000)(cursor)):
                total += gone
    return total


RIGHT = {
    "07.1": [by_code, recursive, retry],
    "07.2": [small_steps, by_ranges, counts_first],
}
WRONG = {
    "07.1": [
        (no_retry, "called `work` 1 times and let the conflict pass"),
        (forgets_the_value, "Expected: what `work()` returned, also if that is None or 0"),
        (falsy_is_failure, "was called 10 times in all. Expected: 1"),
        (nine_attempts, "called `work` 9 times and let the conflict pass"),
        (eleven_attempts, "was called 11 times in all. Expected: 10"),
        (for_ever, "more than 100 times"),
        (sleeps_at_the_end, "`sleep` was called 10 times. Expected: 9"),
        (sleeps_before_each_attempt, "`sleep` was called 1 times. Expected: 0"),
        (gives_up_in_silence, "returned as if nothing had happened"),
        (an_error_of_its_own, "there came `RuntimeError: too many conflicts`"),
        (retries_everything, "Only a conflict, SQLSTATE 40001, goes away by itself"),
        (retries_all_database_errors, "DivisionByZero (SQLSTATE 22012), and was tried again"),
        (fixed_waits, "it always waited for 0.002 s"),
        (no_waits, "it always waited for 0 s"),
        (equal_jitter, "Expected: any time between 0 and"),
        (no_cap, "keep to the limit"),
        (does_not_grow, "which is min(0.1, 0.001 * 2**1)"),
        (milliseconds, "and take seconds?"),
        (counts_from_zero, "Expected: any time between 0 and"),
    ],
    "07.2": [
        (all_at_once, "One transaction changed more than 3,000 rows"),
        (steps_in_one_transaction, "One transaction changed more than 3,000 rows"),
        (one_step, "4,001 are left"),
        (three_steps_without_a_look, "1,001 are left"),
        (counts_outside, "its rows were counted twice"),
        (the_day_itself, "only rows *before* that day are to go"),
        (everything, "rows of later days"),
        (truncates, "DELETE is the one to use"),
        (returns_nothing, "Is there a `return`?"),
        (returns_the_last_step, "Do you add up all steps?"),
        (returns_true, "returned `True`"),
        (commits_nothing, "which commits it"),
    ],
}
