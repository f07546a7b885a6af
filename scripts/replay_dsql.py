"""Replay what others found out about a real Aurora DSQL on the local one, and count what agrees.

    .venv/bin/python scripts/replay_dsql.py CLONE

CLONE is a clone of github.com/Dreamescaper/dsql-emulator, whose test/conformance/golden holds what
a cluster answered, or of github.com/awslabs/aurora-dsql-tools, whose dsql-lint/tests/common/mod.rs
lists statements that a cluster accepts or refuses. Nothing of either is kept here. It runs on
engines of its own, which end with it.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import psycopg2

from workshop_lib.services.local import reset
from workshop_lib.services.local_dsql import open_cluster
from workshop_lib.services.state_folder import StateFolder
from workshop_lib.settings import load_settings

LISTS = Path("dsql-lint/tests/common/mod.rs")


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


def end(cursor: Any) -> None:
    """End a transaction that is still open."""
    if cursor.connection.info.transaction_status:
        cursor.execute("ROLLBACK")


def main() -> None:
    """Replay what the clone has."""
    clone = Path(sys.argv[1])
    replay = replay_lists if (clone / LISTS).exists() else replay_record
    with tempfile.TemporaryDirectory() as state:
        cluster = open_cluster(load_settings(workshop_state_dir=state).values)
        try:
            with contextlib.closing(psycopg2.connect(**cluster.arguments())) as connection:
                connection.autocommit = True
                print(dict(replay(clone, connection.cursor())))
        finally:
            cluster.release()
            reset(StateFolder(Path(state)))


if __name__ == "__main__":
    main()
