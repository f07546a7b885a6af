"""Fill the tables and the bucket; doing it again changes nothing, doing it differently replaces it.

The state after a load depends on the recipe (seed and sizes) alone. A larger size adds rows, and a
smaller one removes some. Where another seed is asked for, rows were changed, or a load was
interrupted, the table is emptied and loaded again.

Loads of one table take turns. The table's row in `workshop_loaded` names the load that is under
way, and every transaction of that load renews this claim. So a load whose claim another one has
taken commits nothing any more, and the claim of a load that was killed ends by itself.
"""

from __future__ import annotations

import contextlib
import csv
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg2
from filelock import FileLock, Timeout
from psycopg2 import errors, sql
from psycopg2.extensions import cursor as Cursor

from workshop_lib.database import Database
from workshop_lib.dataset import schema
from workshop_lib.dataset.schema import Table, find_table
from workshop_lib.dsql import MAX_ROWS_PER_TRANSACTION
from workshop_lib.errors import DataError, WorkshopError
from workshop_lib.paths import FILES, cache_folder
from workshop_lib.progress import progress_bar
from workshop_lib.rows import Row

if TYPE_CHECKING:
    import pandas as pd

DATA = FILES / "data"
LOADED = "workshop_loaded"
"""The table of what has been loaded, from which recipe, and whether to the end."""
LATER_COLUMNS = ("fingerprint BIGINT", "loader VARCHAR(60)", "claimed_until TIMESTAMPTZ")
"""Those of `workshop_loaded` that an earlier version did not make."""
LIMITS = {"users": 100_000, "orders": 1_000_000, "transactions": 1_000_000, "objects": 10_000}
UPLOADS_AT_ONCE = 8
LOAD_WAIT_S = 300.0
"""How long a load waits for another one, seconds."""
LOOK_AGAIN_S = 0.2
CLAIM_S = 10
"""How long after its latest transaction a load counts as under way, seconds."""
OBJECT_NAME = re.compile(r"filename[1-9][0-9]*\.txt")
"""The names of the workshop's objects: all others are a learner's own."""

CONTENT = """
SELECT count(*),
       coalesce(sum(get_byte(digest, 0) * 16777216::bigint + get_byte(digest, 1) * 65536
                    + get_byte(digest, 2) * 256 + get_byte(digest, 3)), 0)::bigint
  FROM (SELECT decode(md5(one::text), 'hex') AS digest FROM {table} AS one OFFSET 0) AS digests
"""
"""How many rows there are, and a sum over all of them that any change of a row changes. OFFSET 0
keeps the digest from being computed anew for each of its bytes."""
NOTE = "SELECT recipe, row_count, complete, fingerprint FROM workshop_loaded WHERE table_name = %s"
FIRST_NOTE = """
INSERT INTO workshop_loaded (table_name, recipe, row_count, complete) VALUES (%s, '', 0, FALSE)
ON CONFLICT DO NOTHING
"""
CLAIM = """
UPDATE workshop_loaded SET loader = %s, claimed_until = now() + %s * interval '1 second'
 WHERE table_name = %s AND (claimed_until IS NULL OR claimed_until < now())
"""
RENEW = """
UPDATE workshop_loaded SET complete = FALSE, claimed_until = now() + %s * interval '1 second'
 WHERE table_name = %s AND loader = %s
"""
FINISH = """
UPDATE workshop_loaded SET complete = TRUE, recipe = %s, row_count = %s, fingerprint = %s
 WHERE table_name = %s
"""
RELEASE = """
UPDATE workshop_loaded SET loader = NULL, claimed_until = NULL WHERE table_name = %s AND loader = %s
"""


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
        commits: transactions in which rows were added; none for objects.
        seconds: how long it took.

    """

    name: str
    rows: int
    new: int
    removed: int
    commits: int
    seconds: float = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """What the rows of a table depend on, how many they are, and the rows."""

    name: str
    count: int
    source: Callable[[], Iterable[Row]]


@dataclass(frozen=True, slots=True)
class _Note:
    """What is on record about a table's latest load."""

    recipe: str = ""
    rows: int = 0
    complete: bool = False
    fingerprint: int | None = None


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

    Rows that were changed, added or deleted since the last load are found by a sum over all rows;
    then the table is emptied and loaded again. A load of the same table that is under way is
    waited for.

    Args:
        database: where.
        name: "planet", "users1", "users", "orders", "type" or "transactions".
        sizes: rows and seed; the workshop's defaults if left out.

    Raises:
        DataError: an unknown table; another load has not finished for minutes, or has taken over
            since this one stood still; or another program wrote to the table meanwhile.

    """
    table = find_table(name)
    recipe = _recipe(name, sizes or Sizes())
    create_table(database, LOADED)
    create_table(database, name)
    started = time.perf_counter()
    changes = (0, 0, 0)
    if not _is_loaded(database, table, recipe):
        with _claim(database, table) as claim:
            if not _is_loaded(database, table, recipe):  # by the load that this one waited for
                changes = _bring_to(claim, recipe)
    return Loaded(name, recipe.count, *changes, time.perf_counter() - started)


def ensure_table(database: Database, name: str) -> None:
    """Load a table with the default sizes, unless it holds a finished load of any size.

    A load that is under way is waited for. Rows are counted, not compared.

    Raises:
        DataError: as `load_table`.

    """
    table = find_table(name)
    create_table(database, LOADED)
    create_table(database, name)
    if not _is_finished(database, table):
        with _claim(database, table) as claim:
            if not _is_finished(database, table):
                _bring_to(claim, _recipe(name, Sizes()))


def load_objects(s3: Any, bucket: str, prefix: str, sizes: Sizes | None = None) -> Loaded:
    """Put the workshop's objects under the prefix; objects that are right already stay.

    Only `filename1.txt`, `filename2.txt` and so on are ever touched: all other names are a
    learner's own. Loads of one user take turns, in whichever processes they run.

    Args:
        s3: a boto3 S3 client.
        bucket: the bucket's name.
        prefix: ends with a slash.
        sizes: number of objects and seed.

    Raises:
        DataError: another load has not finished for minutes.

    """
    sizes = sizes or Sizes()
    started = time.perf_counter()
    with _turn_for_objects():
        new, removed = _put_exactly(s3, bucket, prefix, sizes)
    return Loaded("objects", sizes.objects, new, removed, 0, time.perf_counter() - started)


def ensure_objects(s3: Any, bucket: str, prefix: str) -> None:
    """Put the default number of objects, unless there is a finished load of any size.

    Objects are counted, not compared.

    Raises:
        DataError: as `load_objects`.

    """
    if not _has_finished_objects(s3, bucket, prefix):
        with _turn_for_objects():
            if not _has_finished_objects(s3, bucket, prefix):
                _put_exactly(s3, bucket, prefix, Sizes())


@contextlib.contextmanager
def _turn_for_objects() -> Iterator[None]:
    # Amazon S3 replaces an object in one step. A store on local disk may not: of two concurrent
    # writes of one object, one fails, and a reader finds no object meanwhile.
    try:
        turn = FileLock(cache_folder("locks") / "objects", timeout=LOAD_WAIT_S).acquire()
    except Timeout:
        raise _still_loading("objects") from None
    with turn:
        yield


def _put_exactly(s3: Any, bucket: str, prefix: str, sizes: Sizes) -> tuple[int, int]:
    """Make these the workshop's objects under the prefix. Returns how many were put and deleted."""
    from workshop_lib.dataset import generators  # noqa: PLC0415 -- numpy, which only loading needs

    wanted = {prefix + name: body for name, body in generators.objects(sizes.objects, sizes.seed)}
    present = _workshop_objects(s3, bucket, prefix)
    surplus = present - wanted.keys()

    def is_right(key: str) -> bool:
        with contextlib.suppress(s3.exceptions.NoSuchKey):  # deleted since it was listed
            if key in present:
                body: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
                return body == wanted[key]
        return False

    def put(key: str) -> None:
        s3.put_object(Bucket=bucket, Key=key, Body=wanted[key])

    def delete(key: str) -> None:
        s3.delete_object(Bucket=bucket, Key=key)

    with (
        ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool,
        progress_bar(len(wanted), "objects", "object") as bar,
    ):
        wrong = []
        for key, right in zip(wanted, pool.map(is_right, wanted), strict=True):
            if right:
                bar.update()
            else:
                wrong.append(key)
        if wrong or surplus:
            # The first object goes first and comes back last: while it is not there, the load is
            # not finished.
            first, *others = dict.fromkeys([next(iter(wanted)), *wrong])
            delete(first)
            for _ in pool.map(put, others):
                bar.update()
            list(pool.map(delete, surplus))
            put(first)
    return len(wrong), len(surplus)


def _has_finished_objects(s3: Any, bucket: str, prefix: str) -> bool:
    """Whether the objects from the first to any last one are there."""
    present = _workshop_objects(s3, bucket, prefix)
    names = (f"{prefix}filename{number}.txt" for number in range(1, len(present) + 1))
    return bool(present) and present == set(names)


def _workshop_objects(s3: Any, bucket: str, prefix: str) -> set[str]:
    keys = list_objects(s3, bucket, prefix)
    return {key for key in keys if OBJECT_NAME.fullmatch(key.removeprefix(prefix))}


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


def _recipe(name: str, sizes: Sizes) -> _Recipe:
    from workshop_lib.dataset import generators  # noqa: PLC0415 -- numpy, for who loads only

    seed, users = sizes.seed, sizes.users
    known = {
        "planet": _Recipe("planets.csv", 8, partial(_from_csv, "planets.csv")),
        "users1": _Recipe("users1.csv", 10, partial(_from_csv, "users1.csv")),
        "type": _Recipe("types", len(generators.TYPE_NAMES), generators.types),
        "users": _Recipe(f"seed {seed}", users, partial(generators.users, users, seed)),
        "orders": _Recipe(
            f"seed {seed}, {users} users",
            sizes.orders,
            partial(generators.orders, sizes.orders, seed, users),
        ),
        "transactions": _Recipe(
            f"seed {seed}",
            sizes.transactions,
            partial(generators.transactions, sizes.transactions, seed),
        ),
    }
    if name not in known:
        raise DataError(f"The workshop has no rows for a table {name!r}.")
    return known[name]


def _is_loaded(database: Database, table: Table, recipe: _Recipe) -> bool:
    """Whether the table holds exactly the rows of a finished load by this recipe."""
    note = _read_note(database, table)
    return (note.recipe, note.rows) == (recipe.name, recipe.count) and _is_unchanged(
        database, table, note
    )


def _is_finished(database: Database, table: Table) -> bool:
    """Whether the table holds as many rows as its load left."""
    note = _read_note(database, table)
    return note.complete and _count(database, table) == note.rows


def _is_unchanged(database: Database, table: Table, note: _Note) -> bool:
    """Whether the load has finished, and nothing was changed since."""
    return note.complete and database.query(_content(table))[0] == (note.rows, note.fingerprint)


def _bring_to(claim: _Claim, recipe: _Recipe) -> tuple[int, int, int]:
    """Make the table hold exactly the recipe's rows. Returns rows added, removed, and commits."""
    database, table = claim.database, claim.table
    note = _read_note(database, table)
    is_beginning = note.recipe == recipe.name and _is_unchanged(database, table, note)
    keep = min(note.rows, recipe.count) if is_beginning else 0
    removed = _delete_all_but(claim, keep)
    with progress_bar(recipe.count - keep, table.name) as bar:
        missing = islice(recipe.source(), keep, None)
        new = database.insert_rows(
            table.name, table.columns, missing, progress=bar.update, first=claim.renew
        )
    claim.finish(recipe, keep + new)
    return new, removed, math.ceil((recipe.count - keep) / _rows_per_transaction())


def _delete_all_but(claim: _Claim, keep: int) -> int:
    """Delete the rows that are not numbered from 1 to `keep`, in transactions that DSQL accepts."""
    statement = sql.SQL(
        "DELETE FROM {name} WHERE ({key}) IN "
        "(SELECT {key} FROM {name} WHERE {number} NOT BETWEEN 1 AND %s LIMIT %s)"
    ).format(
        name=sql.Identifier(claim.table.name),
        key=sql.SQL(", ").join(map(sql.Identifier, claim.table.primary_key)),
        number=sql.Identifier(claim.table.number),
    )

    def delete(cursor: Cursor) -> int:
        claim.renew(cursor)
        cursor.execute(statement, (keep, _rows_per_transaction()))
        return cursor.rowcount

    removed = 0
    while gone := claim.database.run_transaction(delete):
        removed += gone
    return removed


def _rows_per_transaction() -> int:
    return MAX_ROWS_PER_TRANSACTION - 1  # the row in `workshop_loaded` is one as well


@contextlib.contextmanager
def _claim(database: Database, table: Table) -> Iterator[_Claim]:
    """Wait until no other load of the table is under way, and hold others off meanwhile."""
    claim, end = _Claim(database, table, uuid4().hex), time.monotonic() + LOAD_WAIT_S
    while not claim.take():
        if time.monotonic() >= end:
            raise _still_loading(table.name)
        time.sleep(LOOK_AGAIN_S)
    try:
        yield claim
    finally:
        # Where the database is gone, the claim ends by itself.
        with contextlib.suppress(WorkshopError, psycopg2.Error):
            database.run_transaction(claim.release)


@dataclass(frozen=True, slots=True)
class _Claim:
    """The right of one load to change a table's rows."""

    database: Database
    table: Table
    loader: str

    def take(self) -> bool:
        """Take it, unless another load has it. Returns whether it is ours now."""

        def write(cursor: Cursor) -> bool:
            cursor.execute(FIRST_NOTE, (self.table.name,))
            cursor.execute(CLAIM, (self.loader, CLAIM_S, self.table.name))
            return bool(cursor.rowcount)

        # On PostgreSQL, a process that was stopped in the middle of a transaction has a lock.
        with contextlib.suppress(errors.LockNotAvailable):
            return self.database.run_transaction(write)
        return False

    def renew(self, cursor: Cursor) -> None:
        """Begin a transaction that changes rows; it fails if another load has taken over."""
        cursor.execute(RENEW, (CLAIM_S, self.table.name, self.loader))
        if not cursor.rowcount:
            raise DataError(
                f"This load of {self.table.name!r} stood still for more than {CLAIM_S} s, and "
                "another one has taken over. Load again if you want other sizes or another seed."
            )

    def finish(self, recipe: _Recipe, loaded: int) -> None:
        """Put on record what the table holds now, if these are the rows that were loaded."""

        def write(cursor: Cursor) -> None:
            self.renew(cursor)
            cursor.execute(_content(self.table))
            ((rows, fingerprint),) = cursor.fetchall()
            if not loaded == rows == recipe.count:
                raise DataError(
                    f"Something else wrote to the table {self.table.name!r} while it was being "
                    f"loaded: {loaded:,} of {recipe.count:,} rows could be loaded, and it holds "
                    f"{rows:,}. Load again."
                )
            cursor.execute(FINISH, (recipe.name, rows, fingerprint, self.table.name))

        self.database.run_transaction(write)

    def release(self, cursor: Cursor) -> None:
        cursor.execute(RELEASE, (self.table.name, self.loader))


def _read_note(database: Database, table: Table) -> _Note:
    try:
        found: list[tuple[Any, ...]] = database.query(NOTE, (table.name,)).rows
    except errors.UndefinedColumn:
        for column in LATER_COLUMNS:
            database.query(f"ALTER TABLE workshop_loaded ADD COLUMN IF NOT EXISTS {column}")
        return _read_note(database, table)
    return _Note(*found[0]) if found else _Note()


def _content(table: Table) -> sql.Composed:
    return sql.SQL(CONTENT).format(table=sql.Identifier(table.name))


def _count(database: Database, table: Table) -> int:
    found = database.query(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.name)))
    return int(str(found[0][0]))


def _still_loading(name: str) -> DataError:
    return DataError(
        f"Another load of {name} has not finished within {LOAD_WAIT_S:.0f} s. Interrupt it, or "
        "wait for it; then load again."
    )


def _from_csv(file: str) -> Iterator[Row]:
    with (DATA / file).open(newline="", encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            yield tuple(line.values())  # as text: the database knows each column's type
