"""What a miss costs beside the database's answer, which is at hand here.

The baseline looks, writes JSON and stores; so does cachelib, with pickle. dogpile.cache makes the
threads of a process wait for one of them; we make the processes wait, too.
"""

from __future__ import annotations

from types import SimpleNamespace

import orjson
import pytest

from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.rows import Rows

# Our three round trips to the baseline's two are 1.5 to begin with: once to look, once to lock and
# look again, once to store and unlock. On a busy machine each of them also waits for its turn.
SMALL = {"goal": 1.8, "bound": 3.0}


@pytest.fixture
def source(ws):
    """A source whose database answers at once, always the same."""

    def make(rows):
        database = SimpleNamespace(identity="at hand", query=lambda *_, **__: rows)
        return SimpleNamespace(database=database, valkey=ws.valkey, namespace=ws.namespace)

    return make


@pytest.fixture
def miss(ws, region, shelf):
    """How the baseline and the peers fill themselves, and what makes all of them forget."""
    key = f"{ws.namespace}:plain"

    def plain(rows):
        assert ws.valkey.get(key) is None
        dicts = [dict(zip(rows.columns, row, strict=True)) for row in rows]
        ws.valkey.set(key, orjson.dumps(dicts, default=str), ex=600)

    def cachelib(rows):
        assert shelf.get("value") is None
        shelf.set("value", rows.rows)

    def subjects(rows):
        return {
            "GET + orjson.dumps + SET": lambda: plain(rows),
            "dogpile.cache": lambda: region.get_or_create("value", lambda: rows.rows),
            "cachelib": lambda: cachelib(rows),
        }

    return subjects


def test_a_record(ws, question, source, miss, race):
    user = ws.database.query("SELECT * FROM users WHERE user_id = 7")
    cache = RecordCache(source(user), "users", "user_id", ttl=600)
    subjects = {"ours": lambda: cache.get(7), **miss(user)}
    race("record miss", subjects, **SMALL, before=ws.clear_cache)
    assert cache.stats().hits == 0


def test_a_query_of_one_row(ws, question, source, miss, race):
    user = ws.database.query("SELECT * FROM users WHERE user_id = 7")
    cache = QueryCache(source(user), ttl=600)
    subjects = {"ours": lambda: cache.fetch("SELECT 1"), **miss(user)}
    race("one-row query miss", subjects, **SMALL, before=ws.clear_cache)
    assert cache.stats().hits == 0


def test_a_query_of_500_rows(ws, question, source, miss, race):
    rows = Rows(question.answer.columns, question.answer.rows, 0.0)
    cache = QueryCache(source(rows), ttl=600)
    subjects = {"ours": lambda: cache.fetch("SELECT 1"), **miss(rows)}
    race("500-row miss", subjects, goal=1.8, before=ws.clear_cache)
    assert cache.stats().hits == 0
