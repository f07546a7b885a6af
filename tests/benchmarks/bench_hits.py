"""What a hit costs: an answer that the cache has, read back with all of its types.

The baseline is the least that anybody could do: GET, and orjson, which gives text back for dates
and amounts. We, dogpile.cache and cachelib give back what the database gave.
"""

from __future__ import annotations

import orjson
import pytest

from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache

# On the edge, 1.15 to 1.25: a kept connection saves most of what keys, types, checksum and counters
# take. The bound is for a busy machine.
SMALL = {"goal": 1.15, "bound": 1.5}
ONE_USER = "SELECT * FROM users WHERE user_id = %s"


@pytest.fixture
def hit(ws, region, shelf):
    """Keeps a value under the baseline and the peers; returns how each reads it."""

    def prepare(value, as_json):
        key = f"{ws.namespace}:plain"
        ws.valkey.set(key, orjson.dumps(as_json, default=str))
        region.set("value", value)
        shelf.set("value", value)
        return {
            "GET + orjson.loads": lambda: orjson.loads(ws.valkey.get(key)),
            "dogpile.cache": lambda: region.get_or_create("value", pytest.fail),
            "cachelib": lambda: shelf.get("value"),
        }

    return prepare


def test_a_record(ws, question, race, hit):
    cache = RecordCache(ws, "users", "user_id", ttl=600)
    record = cache.get(7)
    others = hit(record, record)
    race("record hit", {"ours": lambda: cache.get(7), **others}, **SMALL)
    assert cache.stats().misses == 1


def test_a_query_of_one_row(ws, question, race, hit):
    cache = QueryCache(ws, ttl=600)
    (record,) = cache.fetch(ONE_USER, (7,)).as_dicts()
    others = hit(record, record)
    race("one-row query hit", {"ours": lambda: cache.fetch(ONE_USER, (7,)), **others}, **SMALL)
    assert cache.stats().misses == 1


def test_a_query_of_500_rows_as_tuples(ws, question, race, hit):
    cache = QueryCache(ws, ttl=600)
    cache.fetch(question.text)
    others = hit(question.answer.rows, question.answer.as_dicts())
    subjects = {"ours": lambda: cache.fetch(question.text).rows, **others}
    race("500-row hit, tuples", subjects, goal=1.0)


def test_a_query_of_500_rows_as_dicts(ws, question, race, hit):
    cache = QueryCache(ws, ttl=600)
    cache.fetch(question.text)
    others = hit(question.answer.as_dicts(), question.answer.as_dicts())
    subjects = {"ours": lambda: cache.fetch(question.text).as_dicts(), **others}
    # On the edge, 1.7 to 1.9: making 500 dicts takes as long as reading the rows.
    race("500-row hit, dicts", subjects, goal=1.8, bound=2.4)
