"""What it costs to write one record, and to read many.

The baseline of a write is two commands, between which the record has no TTL. Many records are
hashes, and come back as dicts with their types; MGET reads strings, and decodes nothing.
"""

from __future__ import annotations

from workshop_lib.cache.record_cache import RecordCache

MANY = range(1, 201)


def test_a_write_with_a_ttl(ws, question, race):
    cache = RecordCache(ws, "users", "user_id", ttl=600)
    record, key = cache.get(7), f"{ws.namespace}:plain"

    def texts():
        return {name: str(value) for name, value in record.items()}

    def two_commands():
        ws.valkey.hset(key, mapping=texts())
        ws.valkey.expire(key, 600)

    def pipeline():
        ws.valkey.pipeline(transaction=False).hset(key, mapping=texts()).expire(key, 600).execute()

    race(
        "record write with TTL",
        {
            "ours": lambda: cache.put(7, record),
            "HSET, then EXPIRE": two_commands,
            "pipeline": pipeline,
        },
        # The types are written, older fields and the lock are taken away in the same step.
        goal=0.7,
        bound=1.0,
    )
    assert cache.get(7) == record


def test_200_records(ws, question, race):
    cache = RecordCache(ws, "users", "user_id", ttl=600)
    texts = {f"{ws.namespace}:plain:{number}": f"{cache.get(number)}" for number in MANY}
    ws.valkey.mset(texts)
    race(
        "200 records in one round trip",
        {
            "ours": lambda: cache.get_many(MANY),
            "200 × GET": lambda: [ws.valkey.get(key) for key in texts],
            "200 × our get": lambda: [cache.get(number) for number in MANY],
            "MGET": lambda: ws.valkey.mget(texts),
        },
        # Of 200 round trips one is left; 200 commands are sent, and 200 dicts made of the answers.
        goal=0.2,
        bound=0.5,
        rounds=10,
        block=3,
    )
    assert cache.stats().misses == len(MANY)
