"""Plausible wrong answers to the exercises of notebook 02, and a piece of what each is told."""

import json
import random
import string


def sql_alone(sql, params):
    return sql


def order_of_the_dict(sql, params):
    return f"{sql}:{params}"


def joined_with_types(sql, params):
    if isinstance(params, dict):
        params = sorted(params.items())
    if params is None:
        return sql
    return sql + "|".join(f"{type(value).__name__}:{value}" for value in params)


def json_alone(sql, params):
    return json.dumps([sql, params], sort_keys=True)


def hash_as_number(sql, params):
    return hash((sql, params))


def hash_as_text(sql, params):
    values = tuple(sorted(params.items())) if isinstance(params, dict) else params
    return f"query:{hash((sql, values))}"


def new_every_time(sql, params):
    return sql + "".join(random.choices(string.ascii_letters, k=20))


def parameters_left_out(sql):
    return sql


def asks_whether_the_rows_are_true(cache, key, load):
    found = cache.get(key)
    rows = json.loads(found) if found else None
    if rows:
        return rows
    rows = load()
    cache.set(key, json.dumps(rows), 30)
    return rows


def empty_is_not_kept(cache, key, load):
    found = cache.get(key)
    if found:
        return json.loads(found)
    rows = load()
    if not rows:
        return []
    cache.set(key, json.dumps(rows), 30)
    return rows


def never_keeps(cache, key, load):
    return load()


def never_looks(cache, key, load):
    rows = load()
    cache.set(key, json.dumps(rows), 30)
    return rows


def no_time_to_live(cache, key, load):
    found = cache.get(key)
    if found is not None:
        return json.loads(found)
    rows = load()
    cache.set(key, json.dumps(rows))
    return rows


def expires_at_once(cache, key, load):
    rows = load()
    cache.set(key, json.dumps(rows), 0)
    return rows


def hit_is_bytes(cache, key, load):
    found = cache.get(key)
    if found is not None:
        return found
    rows = load()
    cache.set(key, json.dumps(rows), 30)
    return rows


def rows_not_encoded(cache, key, load):
    rows = load()
    cache.set(key, rows, 30)
    return rows


def miss_returns_nothing(cache, key, load):
    found = cache.get(key)
    if found is not None:
        return json.loads(found)
    cache.set(key, json.dumps(load()), 30)
    return None


def loads_twice(cache, key, load):
    found = cache.get(key)
    if found is not None:
        return json.loads(found)
    cache.set(key, json.dumps(load()), 30)
    return load()


def one_key_for_all(cache, key, load):
    return without_care(cache, "the key", load)


def errors_become_empty_answers(cache, key, load):
    found = cache.get(key)
    if found is not None:
        return json.loads(found)
    try:
        rows = load()
    except Exception:  # noqa: BLE001 - that is what is wrong with it
        rows = []
    cache.set(key, json.dumps(rows), 30)
    return rows


def errors_are_renamed(cache, key, load):
    try:
        return without_care(cache, key, load)
    except ConnectionError as error:
        raise RuntimeError("something went wrong") from error


def try_around_everything(cache, key, load):
    try:
        return without_care(cache, key, load)
    except ValueError:
        return load()


def without_care(cache, key, load):
    found = cache.get(key)
    if found is not None:
        return json.loads(found)
    rows = load()
    cache.set(key, json.dumps(rows), 30)
    return rows


def unreadable_stays(cache, key, load):
    found = cache.get(key)
    try:
        return json.loads(found)
    except TypeError:
        rows = load()
        cache.set(key, json.dumps(rows), 30)
        return rows
    except ValueError:
        return load()


WRONG = {
    "02.1": [
        (sql_alone, "The parameters belong in the key"),
        (order_of_the_dict, "The order in which a dict was filled must not count"),
        (joined_with_types, "where a value ends"),
        (json_alone, "Object of type date is not JSON serializable"),
        (hash_as_number, "Expected: a text, `str`"),
        (hash_as_text, "differs from process to process"),
        (new_every_time, "there is never a hit"),
        (parameters_left_out, "The check calls `cache_key(sql, params)`"),
    ],
    "02.2": [
        (asks_whether_the_rows_are_true, "An empty answer is an answer"),
        (empty_is_not_kept, "`cache.set` was not called"),
        (never_keeps, "`cache.set` was not called"),
        (never_looks, "called `load()` again"),
        (no_time_to_live, "without a time to live"),
        (expires_at_once, "expected: seconds, more than 0"),
        (hit_is_bytes, "turn them into rows"),
        (rows_not_encoded, "try json.dumps"),
        (miss_returns_nothing, "Is there a `return`"),
        (loads_twice, "once is enough"),
        (one_key_for_all, "Each `key` has an entry of its own"),
        (errors_become_empty_answers, "a fault that looks like an answer"),
        (errors_are_renamed, "the error of `load()` itself"),
        (try_around_everything, "Only the decoding"),
        (without_care, "which cannot be read"),
        (unreadable_stays, "the entry is written anew"),
    ],
}
