"""Compare the local Aurora DSQL with a real one, and measure what it costs.

    .venv/bin/python scripts/replay_dsql.py CLONE | costs

CLONE is a clone of github.com/Dreamescaper/dsql-emulator, whose test/conformance/golden holds what
a cluster answered, or of github.com/awslabs/aurora-dsql-tools, whose dsql-lint/tests/common/mod.rs
lists statements that a cluster accepts or refuses. Nothing of either is kept here. `costs` prints
how many times as long work takes through the local DSQL as at the server's own address. It runs on
engines of its own, which end with it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psycopg2

from workshop_lib.services import resolve_cluster
from workshop_lib.services.local import attach, reset
from workshop_lib.services.state_folder import state_folder
from workshop_lib.settings import load_settings

LISTS = Path("dsql-lint/tests/common/mod.rs")
WRITERS = 16
TABLE = "CREATE TABLE costs (id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY, v text)"
INSERT = "INSERT INTO costs (v) VALUES ('x')"
STATEMENTS = {
    "SELECT 1": "SELECT 1",
    "a row by its key": "SELECT * FROM costs WHERE id = 7",
    "500 rows": "SELECT * FROM costs LIMIT 500",
    "an INSERT": INSERT,
    "a transaction of two INSERTs": f"BEGIN; {INSERT}; {INSERT}; COMMIT",
}


def set_up(clone: Path) -> list[str]:
    """The statements that make the record's tables."""
    source = (clone / "internal" / "conformance" / "suite.go").read_text()
    function = source.split("func setupStatements()", 1)[1].split("\n}", 1)[0]
    return [
        json.loads(text) for text in re.findall(r'^\s*("(?:[^"\\]|\\.)*"),', function, re.MULTILINE)
    ]


def answer(cursor: Any, sql: str) -> dict[str, Any]:
    """What the local DSQL says, in the record's words."""
    try:
        cursor.execute(sql)
    except psycopg2.Error as error:
        message = error.diag.message_primary
        return {"outcome": "error", "sqlstate": error.pgcode, "message": message}
    found: dict[str, Any] = {"outcome": "ok", "command_tag": cursor.statusmessage}
    if cursor.description:
        found["columns"] = [column.name for column in cursor.description]
        rows = [[shown(value) for value in row] for row in cursor.fetchall()]
        found |= {"rows": rows} if rows else {}
    return found


def shown(value: object) -> str:
    """A value as the record's own client shows it."""
    match value:
        case None:
            return "NULL"
        case bool():
            return str(value).lower()
        case list():
            return f"[{' '.join(map(str, value))}]"
    return str(value)


def replay_record(clone: Path, cursor: Any) -> Counter[str]:
    """Print each step of the record that differs here, and count."""
    counts: Counter[str] = Counter()
    for statement in set_up(clone):
        cursor.execute(statement)
    for file in sorted((clone / "test" / "conformance" / "golden").glob("*.json")):
        for case in json.loads(file.read_text())["cases"]:
            steps = zip(case["steps"] or [], case.get("observations", []), strict=False)
            for sql, recorded in steps:
                # Of several statements, psycopg2 keeps the last answer.
                wanted = recorded | recorded.get("results", [{}])[-1]
                wanted.pop("results", None)
                got = answer(cursor, sql)
                same = all(got.get(name) == wanted.get(name) for name in ("outcome", "sqlstate"))
                if case.get("ignore_rows"):
                    for one in (got, wanted):
                        one.pop("rows", None)
                counts.update(steps=1, outcome=same, everything=got == wanted)
                if got != wanted:
                    print(f"{case['name']}: {sql[:80]}\n  here  {got}\n  there {wanted}")
            end(cursor)
    return counts


def replay_lists(clone: Path, cursor: Any) -> Counter[str]:
    """Print each statement of AWS's lists that is accepted or refused otherwise, and count."""
    source = (clone / LISTS).read_text()

    def texts(part: str) -> list[str]:
        found = re.findall(
            r'"((?:[^"\\]|\\.)*)"', re.sub(r"^\s*//.*$", "", part, flags=re.MULTILINE)
        )
        return [
            re.sub(r"\\\n\s*", "", one).replace("\\n", "\n").replace('\\"', '"') for one in found
        ]

    def rows(name: str, width: int) -> list[list[str]]:
        part = source.split(f"const {name}:", 1)[1].split("= &[", 1)[1].split("\n];", 1)[0]
        found = texts(part)
        return [found[n : n + width] for n in range(0, len(found), width)]

    fixtures = source.split("pub fn fixture_for_rule", 1)[1].split("/// Multi-statement SQL", 1)[0]
    calls = re.findall(r"fix(?:_with)?\((.*?)\)\s*[,}]\s*\n", fixtures, re.DOTALL)
    cases = [
        *(("", f"CREATE TABLE t (c {kind})", True) for _, kind in rows("SUPPORTED_TYPES", 2)),
        *((first, sql, True) for _, sql, first, _ in rows("CLEAN_STATEMENTS", 4)),
        *(("", sql, True) for _, sql, _ in rows("CLEAN_MULTI_STATEMENT_CASES", 3)),
        *((([*texts(call), "", ""])[2], texts(call)[0], False) for call in calls),
    ]
    counts: Counter[str] = Counter()
    for first, sql, accepted in cases:
        for statement in ("DROP SCHEMA IF EXISTS replay CASCADE", "CREATE SCHEMA replay",
                          "SET search_path = replay", "CREATE TABLE _clust_base (id INT, col INT)",
                          "CREATE TABLE _clean_base (id INT, name TEXT)", first):  # fmt: skip
            answer(cursor, statement)
        answers = [answer(cursor, one) for one in re.split(r";\s*\n", sql) if one.strip(" ;")]
        end(cursor)
        same = all(one["outcome"] == "ok" for one in answers) == accepted
        counts.update(statements=1, agree=same)
        if not same:
            print(f"{sql}\n  here  {answers[-1]}\n  there {'accepted' if accepted else 'refused'}")
    return counts


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(doors: dict[str, dict[str, Any]], times: int = 300) -> None:
    """Print ratios of medians, of measurements that take turns at both doors."""
    with contextlib.ExitStack() as stack:
        cursors: dict[str, list[Any]] = {door: [] for door in doors}
        for door, arguments in list(doors.items()) * WRITERS:
            opened = stack.enter_context(contextlib.closing(psycopg2.connect(**arguments)))
            opened.autocommit = True
            cursors[door].append(opened.cursor())
        pool = stack.enter_context(ThreadPoolExecutor(WRITERS))
        cursors["server"][0].execute(TABLE)
        cursors["server"][0].execute(
            "INSERT INTO costs (v) SELECT 'x' FROM generate_series(1, 500)"
        )

        def insert(cursor: Any) -> None:
            for _ in range(10):
                cursor.execute(INSERT)

        works: dict[str, Callable[[str], object]] = {
            name: lambda door, sql=sql: cursors[door][0].execute(sql)  # type: ignore[misc]
            for name, sql in STATEMENTS.items()
        }
        works["a connection"] = lambda door: psycopg2.connect(**doors[door]).close()
        works[f"{WRITERS} writers"] = lambda door: list(pool.map(insert, cursors[door]))
        for name, work in works.items():
            taken: dict[str, list[float]] = {door: [] for door in doors}
            for _ in range(times if name in STATEMENTS else times // 10):
                for door in doors:
                    taken[door].append(seconds(partial(work, door)))
            ratio = median(taken["local DSQL"]) / median(taken["server"])
            print(f"{name}: {ratio:.1f}")


def end(cursor: Any) -> None:
    """End a transaction that is still open."""
    if cursor.connection.info.transaction_status:
        cursor.execute("ROLLBACK")


def main() -> None:
    """Replay what the clone has, or measure."""
    clone = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as state:
        settings, folder = load_settings(workshop_state_dir=state).values, state_folder(Path(state))
        (cluster, release), held = resolve_cluster(settings), attach(folder, ["postgres"], settings)
        try:
            if sys.argv[1] == "costs":
                server = {
                    "host": "127.0.0.1",
                    "port": held.engines["postgres"].port,
                    "user": "admin",
                    "password": held.secrets["admin"],
                    "dbname": "postgres",
                }
                measure({"server": server, "local DSQL": cluster.login()})
                return
            replay = replay_lists if (clone / LISTS).exists() else replay_record
            with contextlib.closing(psycopg2.connect(**cluster.login())) as connection:
                connection.autocommit = True
                print(dict(replay(clone, connection.cursor())))
        finally:
            held.release()
            release()
            reset(folder)


if __name__ == "__main__":
    main()
