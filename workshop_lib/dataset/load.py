"""Fill the tables and the bucket; doing it again changes nothing, doing it differently replaces it.

The state after a load depends on the recipe (seed and sizes) alone: an interrupted load goes on
where it stopped, a larger size adds, a smaller one removes, another seed starts afresh.
"""

from __future__ import annotations

import contextlib
import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from psycopg2 import errors, sql
from psycopg2.extensions import cursor as Cursor

from workshop_lib.database import Database
from workshop_lib.dataset import schema
from workshop_lib.dataset.schema import Table, find_table
from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError
from workshop_lib.paths import FILES, cache_folder
from workshop_lib.progress import progress_bar
from workshop_lib.rows import Row

if TYPE_CHECKING:
    import pandas as pd

DATA = FILES / "data"
LOADED = "workshop_loaded"
"""The table of what has been loaded, from which recipe, and whether to the end."""
LIMITS = {"users": 100_000, "orders": 1_000_000, "transactions": 1_000_000, "objects": 10_000}
UPLOADS_AT_ONCE = 8
LOAD_WAIT_S = 300.0
"""How long a load of objects waits for another one, seconds."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much data a learner asks for; the defaults are those of the workshop's text.

    Attributes:
        seed: another seed gives other rows of the same kind.
        users, orders, transactions: rows.
        objects: objects in the bucket.

    Raises:
        DataError: a size is out of range; the text says which and what is allowed.

    """

    seed: int = 42
    users: int = 500
    orders: int = 2_500
    transactions: int = 7_000
    objects: int = 200

    def __post_init__(self) -> None:
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= most:
                raise DataError(f"{name} is {value!r}; it must be a whole number, 1 to {most:,}.")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise DataError(f"seed is {self.seed!r}; it must be a whole number from 0 up.")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load did to one table or bucket.

    Attributes:
        name: of the table, or "objects".
        rows: how many are there now.
        new, removed: rows added and deleted by this load.
        commits: transactions that the rows took; none for objects.
        seconds: how long it took.

    """

    name: str
    rows: int
    new: int
    removed: int
    commits: int
    seconds: float = field(repr=False)


Source = Callable[[], Iterable[Row]]


def create_table(database: Database, name: str) -> None:
    """Create one of the workshop's tables if it is not there yet.

    Raises:
        DataError: the workshop has no table of that name.

    """
    table = find_table(name)
    if name not in list_tables(database):
        database.create(table.ddl)


def load_table(database: Database, name: str, sizes: Sizes | None = None) -> Loaded:
    """Create a table if need be and bring its rows to exactly what the sizes and the seed ask for.

    Args:
        database: where.
        name: "planet", "users1", "users", "orders", "type" or "transactions".
        sizes: rows and seed; the workshop's defaults if left out.

    Raises:
        DataError: an unknown table.

    """
    table = find_table(name)
    recipe, count, source = _recipe(name, sizes or Sizes())
    create_table(database, LOADED)
    create_table(database, name)
    started = time.perf_counter()
    new, removed, commits = _bring_to(database, table, recipe, count, source)
    seconds = time.perf_counter() - started
    return Loaded(name, _count(database, table), new, removed, commits, seconds)


def ensure_table(database: Database, name: str) -> None:
    """Load a table with the default sizes, unless it holds a finished load of any size."""
    create_table(database, LOADED)
    create_table(database, name)
    _, rows, complete = _loaded(database, name)
    if not complete or _count(database, find_table(name)) != rows:
        load_table(database, name)


def load_objects(s3: Any, bucket: str, prefix: str, sizes: Sizes | None = None) -> Loaded:
    """Put the workshop's objects under the prefix; objects that are right already stay.

    Loads of one user take turns, in whichever processes they run.

    Args:
        s3: a boto3 S3 client.
        bucket: the bucket's name.
        prefix: ends with a slash; only objects under it are ever touched.
        sizes: number of objects and seed.

    Raises:
        DataError: another load has not finished for minutes.

    """
    sizes = sizes or Sizes()
    from workshop_lib.dataset import generators  # noqa: PLC0415 -- numpy, which only loading needs

    started = time.perf_counter()
    wanted = {prefix + name: body for name, body in generators.objects(sizes.objects, sizes.seed)}
    # Amazon S3 replaces an object in one step. A store on local disk may not: of two concurrent
    # writes of one object, one fails, and a reader finds no object meanwhile.
    try:
        with FileLock(cache_folder("locks") / "objects", timeout=LOAD_WAIT_S):
            new, removed = _put_exactly(s3, bucket, prefix, wanted)
    except Timeout:
        raise DataError(
            f"Another load of objects has not finished within {LOAD_WAIT_S:.0f} s. Interrupt it, "
            "or wait for it; then load again."
        ) from None
    return Loaded("objects", len(wanted), new, removed, 0, time.perf_counter() - started)


def _put_exactly(s3: Any, bucket: str, prefix: str, wanted: dict[str, bytes]) -> tuple[int, int]:
    """Make the prefix hold exactly these objects. Returns how many were put and deleted."""
    present = set(list_objects(s3, bucket, prefix))
    surplus = present - wanted.keys()

    def put(key: str) -> int:
        with contextlib.suppress(s3.exceptions.NoSuchKey):  # deleted since it was listed
            if (
                key in present
                and s3.get_object(Bucket=bucket, Key=key)["Body"].read() == wanted[key]
            ):
                return 0
        s3.put_object(Bucket=bucket, Key=key, Body=wanted[key])
        return 1

    new = 0
    with (
        ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool,
        progress_bar(len(wanted), "objects", "object") as bar,
    ):
        for uploaded in pool.map(put, wanted):
            new += uploaded
            bar.update()
        list(pool.map(lambda key: s3.delete_object(Bucket=bucket, Key=key), surplus))
    return new, len(surplus)


def list_objects(s3: Any, bucket: str, prefix: str) -> Iterator[str]:
    """The keys under a prefix."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        yield from (item["Key"] for item in page.get("Contents", ()))


def count_tables(database: Database) -> pd.DataFrame:
    """The workshop's tables that are there, with their number of rows."""
    present = list_tables(database)
    names = [name for name in present if name in schema.TABLES and name != LOADED]
    counts = [_count(database, find_table(name)) for name in names]
    import pandas as pd  # noqa: PLC0415 -- it takes as long as all else that opening imports

    return pd.DataFrame({"rows": counts}, index=names)


def list_tables(database: Database) -> list[str]:
    """The names of all tables in the workshop's schema, sorted."""
    found = database.query(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY tablename",
        (database.schema,),
    )
    return [str(name) for (name,) in found]


def drop_everything(database: Database, *, of_others: bool = False) -> list[str]:
    """Drop the workshop's tables and their schema, one DDL statement at a time.

    Args:
        database: with the schema.
        of_others: also drop tables that are not the workshop's. If not, they stay, and so
            does the schema.

    Returns:
        The names of the tables that were there.

    """
    known = {*schema.TABLES, *schema.MADE_IN_NOTEBOOKS}
    ours = [name for name in list_tables(database) if of_others or name in known]
    for table in ours:
        database.query(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(table)))
    # Whatever else a learner made in it stays, and so does the schema then.
    with contextlib.suppress(errors.DependentObjectsStillExist):
        name = sql.Identifier(database.schema)
        database.query(sql.SQL("DROP SCHEMA IF EXISTS {}").format(name))
    return ours


def _recipe(name: str, sizes: Sizes) -> tuple[str, int, Source]:
    """What the rows depend on, how many they are, and the rows."""
    from workshop_lib.dataset import generators  # noqa: PLC0415 -- numpy, for who loads only

    seed, users = sizes.seed, sizes.users
    known: dict[str, tuple[str, int, Source]] = {
        "planet": ("planets.csv", 8, partial(_from_csv, "planets.csv")),
        "users1": ("users1.csv", 10, partial(_from_csv, "users1.csv")),
        "type": ("types", len(generators.TYPE_NAMES), generators.types),
        "users": (f"seed {seed}", users, partial(generators.users, users, seed)),
        "orders": (
            f"seed {seed}, {users} users",
            sizes.orders,
            partial(generators.orders, sizes.orders, seed, users),
        ),
        "transactions": (
            f"seed {seed}",
            sizes.transactions,
            partial(generators.transactions, sizes.transactions, seed),
        ),
    }
    if name not in known:
        raise DataError(f"The workshop has no rows for a table {name!r}.")
    return known[name]


def _bring_to(
    database: Database, table: Table, recipe: str, count: int, source: Source
) -> tuple[int, int, int]:
    """Make the table hold exactly the recipe's rows. Returns rows added, removed, and commits."""
    made_from, rows, complete = _loaded(database, table.name)
    if (made_from, rows, complete) == (recipe, count, True) and _count(database, table) == count:
        return 0, 0, 0
    # The old recipe stays on record until its last row is gone: should this be interrupted, the
    # next load must know that what it finds is not its own.
    _note(database, table, made_from, rows, complete=False)
    removed = _delete_above(database, table, count if made_from == recipe else 0)
    _note(database, table, recipe, count, complete=False)
    with progress_bar(count, table.name) as bar:
        new = database.insert_rows(table.name, table.columns, source(), progress=bar.update)
    _note(database, table, recipe, count, complete=True)
    return new, removed, math.ceil(count / MAX_ROWS_PER_TRANSACTION)


def _delete_above(database: Database, table: Table, key: int) -> int:
    """Delete the rows whose key is larger, in transactions that DSQL accepts."""
    name, column = sql.Identifier(table.name), sql.Identifier(table.key)
    statement = sql.SQL(
        "DELETE FROM {name} WHERE {key} IN (SELECT {key} FROM {name} WHERE {key} > %s LIMIT %s)"
    ).format(name=name, key=column)

    def delete(cursor: Cursor) -> int:
        cursor.execute(statement, (key, MAX_ROWS_PER_TRANSACTION))
        return cursor.rowcount

    removed = 0
    while gone := database.run_transaction(delete):
        removed += gone
    return removed


def _loaded(database: Database, table: str) -> tuple[str, int, bool]:
    found = database.query(
        "SELECT recipe, row_count, complete FROM workshop_loaded WHERE table_name = %s", (table,)
    )
    if not found:
        return "", 0, False
    recipe, rows, complete = found[0]
    return str(recipe), int(str(rows)), bool(complete)


def _note(database: Database, table: Table, recipe: str, rows: int, *, complete: bool) -> None:
    def write(cursor: Cursor) -> None:
        cursor.execute(
            "INSERT INTO workshop_loaded (table_name, recipe, row_count, complete) "
            "VALUES (%(name)s, %(recipe)s, %(rows)s, %(complete)s) "
            "ON CONFLICT (table_name) DO UPDATE SET recipe = EXCLUDED.recipe, "
            "row_count = EXCLUDED.row_count, complete = EXCLUDED.complete",
            {"name": table.name, "recipe": recipe, "rows": rows, "complete": complete},
        )

    database.run_transaction(write)


def _count(database: Database, table: Table) -> int:
    found = database.query(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.name)))
    return int(str(found[0][0]))


def _from_csv(file: str) -> Iterator[Row]:
    with (DATA / file).open(newline="", encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            yield tuple(line.values())  # as text: the database knows each column's type
