"""Plausible wrong answers to the exercises of notebook 03, and a piece of what each is told."""

import json


def present(record):
    return {name: value for name, value in record.items() if value is not None}


def two_commands(valkey, key, record, seconds):
    valkey.hset(key, mapping=present(record))
    valkey.expire(key, seconds)


def time_to_live_first(valkey, key, record, seconds):
    valkey.expire(key, seconds)
    valkey.hset(key, mapping=present(record))


def keeps_old_fields(valkey, key, record, seconds):
    with valkey.pipeline() as step:
        step.hset(key, mapping=present(record))
        step.expire(key, seconds)
        step.execute()


def deletes_beforehand(valkey, key, record, seconds):
    valkey.delete(key)
    keeps_old_fields(valkey, key, record, seconds)


def writes_beside_and_renames(valkey, key, record, seconds):
    valkey.hset(f"{key}:new", mapping=present(record))
    valkey.expire(f"{key}:new", seconds)
    valkey.rename(f"{key}:new", key)


def milliseconds_for_seconds(valkey, key, record, seconds):
    with valkey.pipeline() as step:
        step.delete(key)
        step.hset(key, mapping=present(record))
        step.pexpire(key, seconds)
        step.execute()


def never_executes(valkey, key, record, seconds):
    step = valkey.pipeline()
    step.hset(key, mapping=present(record))
    step.expire(key, seconds)


def with_null(valkey, key, record, seconds):
    with valkey.pipeline() as step:
        step.delete(key)
        step.hset(key, mapping=record)
        step.expire(key, seconds)
        step.execute()


def null_as_text(valkey, key, record, seconds):
    with_null(valkey, key, {name: str(value) for name, value in record.items()}, seconds)


def empty_left_out(valkey, key, record, seconds):
    with_null(valkey, key, {name: value for name, value in record.items() if value}, seconds)


def ascii_only(valkey, key, record, seconds):
    plain = {name: ascii(value)[1:-1] for name, value in present(record).items()}
    with_null(valkey, key, plain, seconds)


def one_value(valkey, key, record, seconds):
    valkey.set(key, json.dumps(record), ex=seconds)


def no_seconds(valkey, key, record):
    two_commands(valkey, key, record, 30)


def finish(keys, names, load):
    missing = [key for key in dict.fromkeys(keys) if names.get(key) is None]
    if missing:
        names |= load(missing)
    return [names.get(key) for key in keys]


def read(valkey, keys):
    pipeline = valkey.pipeline(transaction=False)
    for key in keys:
        pipeline.get(key)
    return pipeline.execute()


def as_text(names):
    return [name if name is None else name.decode() for name in names]


def one_get_a_key(valkey, keys, load):
    names = as_text([valkey.get(key) for key in keys])
    return finish(keys, dict(zip(keys, names, strict=True)), load)


def one_pipeline_a_key(valkey, keys, load):
    names = as_text([read(valkey, [key])[0] for key in keys])
    return finish(keys, dict(zip(keys, names, strict=True)), load)


def asks_what_is_there_first(valkey, keys, load):
    if not keys or not valkey.exists(*keys):
        return finish(keys, {}, load)
    return finish(keys, dict(zip(keys, as_text(read(valkey, keys)), strict=True)), load)


def one_load_a_key(valkey, keys, load):
    names = dict(zip(keys, as_text(read(valkey, keys)), strict=True))
    for key, name in names.items():
        if name is None:
            names[key] = load([key]).get(key)
    return [names[key] for key in keys]


def load_of_one_text(valkey, keys, load):
    names = dict(zip(keys, as_text(read(valkey, keys)), strict=True))
    return [load(key).get(key) if name is None else name for key, name in names.items()]


def one_round_trip_but_no_load(valkey, keys, load):
    return as_text(read(valkey, keys))


def always_loads(valkey, keys, load):
    names = dict(zip(keys, as_text(read(valkey, keys)), strict=True))
    names |= load([key for key, name in names.items() if name is None])
    return [names.get(key) for key in keys]


def hits_then_loaded(valkey, keys, load):
    names = dict(zip(keys, as_text(read(valkey, keys)), strict=True))
    hits = [name for name in names.values() if name is not None]
    missing = [key for key, name in names.items() if name is None]
    return hits + (list(load(missing).values()) if missing else [])


def equal_keys_answered_once(valkey, keys, load):
    names = dict(zip(keys, as_text(read(valkey, keys)), strict=True))
    return finish(list(names), names, load)


def absent_is_left_out(valkey, keys, load):
    names = finish(keys, dict(zip(keys, as_text(read(valkey, keys)), strict=True)), load)
    return [name for name in names if name is not None]


def absent_is_a_fault(valkey, keys, load):
    names = dict(zip(keys, as_text(read(valkey, keys)), strict=True))
    missing = [key for key, name in names.items() if name is None]
    if missing:
        loaded = load(missing)
        for key in missing:
            names[key] = loaded[key]
    return [names[key] for key in keys]


def no_keys_are_a_fault(valkey, keys, load):
    names = as_text(valkey.execute_command("MGET", *keys))
    return finish(keys, dict(zip(keys, names, strict=True)), load)


WRONG = {
    "03.1": [
        (two_commands, "broke after command 1 of 2, `HSET`, and left behind"),
        (time_to_live_first, "has no time to live"),
        (keeps_old_fields, "'visited_by': 'Mariner 4'"),
        (deletes_beforehand, "two who write at once could mix"),
        (writes_beside_and_renames, ":new` was left behind"),
        (milliseconds_for_seconds, "`pexpire` in milliseconds"),
        (never_executes, "there is nothing under the key"),
        (with_null, "no None: leave such fields out"),
        (null_as_text, "a field `type`, which holds `'None'`"),
        (empty_left_out, "ask `is not None`"),
        (ascii_only, "expected: `{'name': '地球'"),
        (one_value, "Under the key there is a string"),
        (no_seconds, "The check calls `write_record(valkey, key, record, seconds)`"),
    ],
    "03.2": [
        (one_get_a_key, "took 3 round trips (`GET`, `GET`, `GET`); expected: 1"),
        (one_pipeline_a_key, "took 3 round trips"),
        (asks_what_is_there_first, "took 2 round trips (`EXISTS`, `GET`)"),
        (one_load_a_key, "`load` of [4] and `load` of [3]; expected: one `load` of [4, 3]"),
        (load_of_one_text, "One call, which is one query"),
        (one_round_trip_but_no_load, "called no `load`"),
        (always_loads, "expected: no call, since nothing is missing"),
        (hits_then_loaded, "have the order of the keys"),
        (equal_keys_answered_once, "the second of two equal keys"),
        (absent_is_left_out, "None where there is no such planet"),
        (absent_is_a_fault, "stopped with KeyError"),
        (no_keys_are_a_fault, "With no keys at all, `get_planets` stopped with"),
    ],
}
