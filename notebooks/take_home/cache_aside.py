"""Cache-aside for rows of PostgreSQL or Aurora DSQL, in Valkey or Redis: notebooks 02, 05 and 07.

Bring a psycopg2 connection in autocommit mode with a read-only session, and a redis-py client with
short time-outs and one retry at most: without a breaker, each call waits for a silent cache. For
data that you `forget` use `fetch_once`; lease and `patience` must outlast the slowest query.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from uuid import uuid4

READERS = {"Decimal": Decimal, "date": date.fromisoformat, "datetime": datetime.fromisoformat}
counts = Counter()


def pack(value):
    """A value as JSON can hold it."""
    kind = type(value).__name__
    if value is None or kind in ("bool", "int", "float", "str"):
        return value
    if kind in READERS:
        return {kind: str(value)}
    raise TypeError(f"a {kind} cannot be cached yet: add how to read it to READERS")


def encode(rows):
    """Rows as text for the cache."""
    return json.dumps([[pack(value) for value in row] for row in rows])


def decode(text):
    """The rows that `encode` was given, as tuples."""

    def unpack(found):
        ((kind, value),) = found.items()
        return READERS[kind](value)

    return [tuple(row) for row in json.loads(text, object_hook=unpack)]


def cache_key(sql, params=None, prefix="app"):
    """The same key for the same question; never the same for two."""
    params = sorted(params.items()) if isinstance(params, dict) else params
    json.dumps(params, default=pack)  # refuses what repr does not show, such as an array
    digest = hashlib.sha256(repr((sql, params)).encode()).hexdigest()
    return f"{prefix}:{{{digest[:32]}}}"


def ask(connection, sql, params=None):
    """The rows of a query, as tuples."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchall()


def keep(valkey, key, rows, ttl):
    """Keep rows for `ttl` seconds, if the cache takes them."""
    try:
        valkey.set(key, encode(rows), px=int(ttl * 1000))
    except Exception as error:  # the caller has its answer
        counts.update(["faults", f"not kept: {error}"])


def fetch(valkey, connection, sql, params=None, ttl=30, prefix="app"):
    """The rows of a query, from the cache if it has them: look, ask, keep."""
    key = cache_key(sql, params, prefix)
    try:
        if (found := valkey.get(key)) is not None:  # look
            rows = decode(found)
            counts["hits"] += 1
            return rows
    except Exception:  # no cache, or an entry that cannot be read: as on a miss
        counts["faults"] += 1
    rows = ask(connection, sql, params)  # ask
    counts["misses"] += 1
    keep(valkey, key, rows, ttl)
    return rows


def spread(ttl, share=0.1):
    """A TTL shortened by up to this share at random: what was filled together expires apart."""
    return ttl * (1 - share * random.random())


def take_lease(valkey, key, seconds=10):
    """A token that allows us to load this key; None while another reader holds one."""
    token = uuid4().hex
    return token if valkey.set(f"{key}:lease", token, nx=True, px=int(seconds * 1000)) else None


KEEP_IF_MINE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return redis.call('DEL', KEYS[2])
"""


def keep_if_mine(valkey, key, token, rows, ttl):
    """Keep rows and release the lease, if it is still ours; returns whether it was."""
    content = (token, encode(rows), int(ttl * 1000))
    return bool(valkey.eval(KEEP_IF_MINE, 2, key, f"{key}:lease", *content))


def forget(valkey, key):
    """After a commit: delete the entry, and the lease of a reader that is loading an older one."""
    valkey.delete(key, f"{key}:lease")


RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


def release(valkey, lock, token):
    """Release a lock if it is still ours; returns whether it was."""
    return bool(valkey.eval(RELEASE, 1, lock, token))


def read(valkey, key):
    """The rows that a key holds; None if there are none, or they cannot be read."""
    if (found := valkey.get(key)) is None:
        return None
    try:
        return decode(found)
    except Exception:
        counts["faults"] += 1
        return None


def look_or_lease(valkey, key, patience):
    """Rows from the cache, or a lease to load them, or neither if it takes too long."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if (rows := read(valkey, key)) is not None:
            return rows, None
        if token := take_lease(valkey, key):
            if (rows := read(valkey, key)) is not None:
                release(valkey, f"{key}:lease", token)
            return rows, token
        time.sleep(0.01)
    return None, None


def fetch_once(valkey, connection, sql, params=None, ttl=30, prefix="app", patience=2.0):
    """As `fetch`, with one query for all who ask at the same time, in other processes as well."""
    key, rows, token = cache_key(sql, params, prefix), None, None
    try:
        rows, token = look_or_lease(valkey, key, patience)
    except Exception:  # no cache: go straight to the database
        counts["faults"] += 1
    if rows is not None:
        counts["hits"] += 1
        return rows
    try:
        rows = ask(connection, sql, params)
        counts["misses"] += 1
    finally:
        hand_over(valkey, key, token, rows, ttl)
    return rows


def hand_over(valkey, key, token, rows, ttl):
    """Keep rows for those who wait, if we hold the lease; if that fails, at least release it."""
    try:
        if token:
            try:
                keep_if_mine(valkey, key, token, rows, ttl)
            except Exception:  # no rows, or a type or TTL that cannot be kept
                release(valkey, f"{key}:lease", token)
                raise
    except Exception as error:  # the caller has its answer, or the error of its query
        counts.update(["faults", f"not kept: {error}"])
