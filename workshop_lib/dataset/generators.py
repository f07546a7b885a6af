"""Seeded rows and objects: the same seed gives the same data on every machine.

Rows come in blocks of 1,000, each with a generator of its own, so that the first rows of a large
table are exactly the rows of a small one.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np

from workshop_lib.dataset.schema import TODAY
from workshop_lib.rows import Row

BLOCK = 1_000
DAYS = 90
DEPARTMENTS = ("Engineering", "Finance", "Marketing", "Operations", "Sales", "Support")
ROLES = ("analyst", "engineer", "lead", "manager", "specialist")
ORDER_TYPES = ("app", "phone", "store", "subscription", "web")
TYPE_NAMES = (
    "groceries", "fuel", "travel", "books", "music",
    "clothing", "garden", "tools", "toys", "gifts",
)  # fmt: skip
FIRST_NAMES = (
    "Ada", "Bao", "Carla", "Dmitri", "Elif", "Femi", "Greta", "Hiro", "Ines", "Jomo",
    "Kaja", "Luis", "Mira", "Noor", "Olga", "Pavel", "Quinn", "Rosa", "Samir", "Tove",
)  # fmt: skip
LAST_NAMES = (
    "Abara", "Berg", "Costa", "Dahl", "Eriksen", "Fofana", "García", "Haddad", "Ito", "Jansen",
    "Kowalski", "Larsen", "Mensah", "Novák", "Öztürk", "Petrov", "Quispe", "Rossi", "Silva", "Tran",
)  # fmt: skip
ALPHABET = string.ascii_letters + string.digits
OBJECT_PREFIX = "This object belongs to the cache-aside workshop. "


def users(count: int, seed: int) -> Iterator[Row]:
    """Rows for `users`: user_id from 1, name, email, department, role, last_login (some NULL)."""
    for first, size, rng in _blocks("users", count, seed):
        given, family, department, role, minutes = (
            rng.integers(0, limit, BLOCK).tolist()
            for limit in (
                len(FIRST_NAMES), len(LAST_NAMES), len(DEPARTMENTS), len(ROLES), 60 * 24 * DAYS,
            )
        )  # fmt: skip
        end = datetime.combine(TODAY, datetime.min.time(), UTC)
        for i in range(size):
            user_id = first + i
            name = f"{FIRST_NAMES[given[i]]} {LAST_NAMES[family[i]]}"
            # Every twentieth has never logged in: real tables have NULLs.
            login = None if user_id % 20 == 0 else end - timedelta(minutes=minutes[i])
            email = f"user{user_id}@example.com"
            yield user_id, name, email, DEPARTMENTS[department[i]], ROLES[role[i]], login


def orders(count: int, seed: int, user_count: int) -> Iterator[Row]:
    """Rows for `orders`: order_id from 1, a user, a day of the last 90, an amount, a type."""
    for first, size, rng in _blocks("orders", count, seed):
        user = rng.integers(1, user_count + 1, BLOCK).tolist()
        age = rng.integers(0, DAYS, BLOCK).tolist()
        # Log-normal: many small orders and a few large ones, as in real shops.
        cents = np.clip(rng.lognormal(8.3, 0.8, BLOCK), 99, 999_999).astype(int).tolist()
        kind = rng.integers(0, len(ORDER_TYPES), BLOCK).tolist()
        for i in range(size):
            day = TODAY - timedelta(days=age[i])
            yield first + i, user[i], day, _money(cents[i]), ORDER_TYPES[kind[i]]


def types() -> Iterator[Row]:
    """Rows for `type`: ids 1 to 10 with a name each."""
    yield from enumerate(TYPE_NAMES, start=1)


def transactions(count: int, seed: int) -> Iterator[Row]:
    """Rows for `transactions`: id from 1, type 1–10, date, quantity 1–1,000, price 0–500."""
    for first, size, rng in _blocks("transactions", count, seed):
        kind = rng.integers(1, len(TYPE_NAMES) + 1, BLOCK).tolist()
        age = rng.integers(0, DAYS, BLOCK).tolist()
        quantity = rng.integers(1, 1_001, BLOCK).tolist()
        cents = rng.integers(0, 50_001, BLOCK).tolist()
        for i in range(size):
            day = TODAY - timedelta(days=age[i])
            yield first + i, kind[i], day, quantity[i], _money(cents[i])


def objects(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and bodies of `filename1.txt` … : a fixed prefix and 200 to 399 random characters."""
    for i in range(1, count + 1):  # as the stack on AWS fills its bucket, which has no numpy
        rng = random.Random(f"{seed} objects {i}")
        letters = rng.choices(ALPHABET, k=rng.randrange(200, 400))
        yield f"filename{i}.txt", f"{OBJECT_PREFIX}{''.join(letters)}".encode()


def _blocks(kind: str, count: int, seed: int) -> Iterator[tuple[int, int, np.random.Generator]]:
    """The first number, the size and the generator of each block."""
    for block, start in enumerate(range(0, count, BLOCK)):
        rng = np.random.default_rng([seed, *kind.encode(), block])
        yield start + 1, min(BLOCK, count - start), rng


def _money(cents: int) -> Decimal:
    return Decimal(cents).scaleb(-2)
