"""What the text of a statement tells of caching its answer, by PostgreSQL's parser."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import pgparse

from workshop_lib.cache.side_effects import SIDE_EFFECTS
from workshop_lib.dsql.parse_tree import MAX_PARSED, Node, nodes, parts

Found = defaultdict[str, list[Node]]
"""All structures of a statement, by the names that they stand under."""
WRITES = {"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"}
EFFECTS = "it has side effects, so it must reach the database"
DIFFERS = "its answer should differ each time"
WHO_ASKS = "its answer depends on who asks: make that a parameter first"
FUNCTIONS = (
    (SIDE_EFFECTS, EFFECTS),
    (re.compile(r"pg_sleep\w*"), EFFECTS),
    (re.compile(r"random\w*|gen_random_\w+|uuidv[47]|uuid_generate_v\w+"), DIFFERS),
    (re.compile(r"array_sample|array_shuffle|(txid|pg)_current_\w+"), DIFFERS),
    (re.compile(r"current_(setting|user|schemas?)|getpgusername|has_\w+_privilege"), WHO_ASKS),
    (re.compile(r"pg_has_role|row_security_active|inet_(client|server)_(addr|port)"), WHO_ASKS),
    (re.compile(r"pg_backend_pid|pg_my_temp_schema|currval|lastval"), WHO_ASKS),
)
"""Functions whose answer cannot be cached, and why."""
CLOCK = {"now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday"}
DAYS = {"now", "today", "tomorrow", "yesterday"}
"""Texts that are times as of now, where a time is wanted."""
ORDER = {"<", "<=", ">", ">=", "BETWEEN", "NOT BETWEEN"}
COMPARISONS = ORDER | {"~~", "~~*", "~", "~*", "@@"}
"""Operators, LIKE among them, whose parameter can be another one in every call."""
LISTS = {"AEXPR_IN", "AEXPR_OP_ANY"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a statement's text tells.

    Attributes:
        text: on one line, without values.
        leave: why its answer cannot be cached; empty if it can.
        doubt: what to find out before it is cached; empty if nothing.
        parameters: whether it has any. Without, one entry answers every call.
        reads, changes: names of tables, without their schemas.

    """

    text: str
    leave: str
    doubt: str = ""
    parameters: bool = False
    reads: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()


def shape(query: str) -> Shape:
    """What a statement's text tells, by PostgreSQL's parser.

    >>> shape("SELECT * FROM users WHERE id = $1 FOR UPDATE").leave
    'it locks rows, so it must reach the database'
    """
    statement = parse_one(query)
    if statement is None:
        shown = _on_one_line(query.partition("'")[0])  # what may be a value stays hidden
        return Shape(shown, "it cannot be parsed as one statement, so nothing is known of it")
    found: Found = defaultdict(list)
    for what, node in nodes([statement]):
        found[what].append(node)
    changes = {node["relation"]["relname"] for kind in WRITES for node in found[kind]}
    tables = _tables(statement)
    return Shape(
        _on_one_line(str(pgparse.normalize(query))),
        _why_not(statement, found, tables),
        _doubt(found),
        _has_parameter(statement),
        frozenset({one["relname"] for one in tables} - changes),
        frozenset(changes),
    )


def parse_one(query: str) -> Node | None:
    """The tree of a statement, under the name of its kind; None if it is not one, or too deep."""
    if len(query.encode()) > MAX_PARSED:
        return None
    try:
        (parsed,) = pgparse.parse(query)
    except (pgparse.PGQueryError, RecursionError, ValueError):
        return None
    return dict(parsed["stmt"])


def _on_one_line(text: str) -> str:
    """With nothing in it that moves a terminal's cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _tables(statement: Node) -> list[Node]:
    """The tables that it reads. Within its scope, a name of WITH hides the table of that name."""
    tables = list[Node]()
    waiting: list[tuple[object, frozenset[str]]] = [(statement, frozenset())]
    while waiting:
        node, named = waiting.pop()
        if isinstance(node, list):
            waiting += [(one, named) for one in node]
        elif isinstance(node, dict):
            clause = node.get("withClause", {})
            for one in parts(clause, "ctes", "CommonTableExpr"):
                # It sees those before it, and by RECURSIVE all of them.
                before, named = named, named | {one["ctename"]}
                if not clause.get("recursive"):
                    waiting.append((one["ctequery"], before))
            if clause.get("recursive"):
                waiting.append((clause["ctes"], named))
            waiting += [(part, named) for name, part in node.items() if name != "withClause"]
            table = node.get("RangeVar")
            if table and ("schemaname" in table or table["relname"] not in named):
                tables.append(table)
    return tables


def _why_not(statement: Node, found: Found, tables: Collection[Node]) -> str:
    """Why its answer cannot be cached; empty if it can."""
    (kind,) = statement
    calls, values = _functions(found)
    if found["intoClause"] or any(found[writing] for writing in WRITES):
        return "it writes, so it must reach the database"
    if kind != "SelectStmt":
        return f"it is no query ({kind.removesuffix('Stmt')})"
    if found["LockingClause"]:
        return "it locks rows, so it must reach the database"
    for functions, why in FUNCTIONS:
        if called := sorted(filter(functions.fullmatch, calls)):
            return f"{why} ({called[0]}())"
    if any("repeatable" not in one for one in found["RangeTableSample"]):
        return f"{DIFFERS} (TABLESAMPLE)"
    for value in values:
        if value.endswith(("USER", "ROLE", "SCHEMA")):
            return f"{WHO_ASKS} ({value})"
    if not tables:
        return "it reads no table"
    return "it reads the catalogue, as drivers and tools do" if _is_catalogue(tables) else ""


def _functions(found: Found) -> tuple[set[str], list[str]]:
    """The functions that it calls, without their schemas; and values such as CURRENT_DATE."""
    calls = {one["funcname"][-1]["String"]["sval"] for one in found["FuncCall"]}
    return calls, [one["op"].removeprefix("SVFOP_") for one in found["SQLValueFunction"]]


def _is_catalogue(tables: Collection[Node]) -> bool:
    schemas = {"pg_catalog", "information_schema"}
    return all(
        one.get("schemaname") in schemas or one["relname"].startswith("pg_") for one in tables
    )


def _doubt(found: Found) -> str:
    """What to find out before it is cached; empty if nothing."""
    if _asks_for_the_time(found):
        return "it asks for the time: a cached answer has the time at which it was loaded"
    compared = found["limitOffset"] + [
        one for one in found["A_Expr"] if _operator(one) in COMPARISONS or one["kind"] in LISTS
    ]
    if any(map(_has_parameter, compared)):
        return (
            "each call may be unique, by a parameter that is compared by <, > or LIKE, or is a "
            "list, or an OFFSET: count the different values"
        )
    return ""


def _asks_for_the_time(found: Found) -> bool:
    calls, values = _functions(found)
    ages = [one for one in found["FuncCall"] if one["funcname"][-1]["String"]["sval"] == "age"]
    times = found["TypeCast"] + [one for one in found["A_Expr"] if _operator(one) in ORDER]
    texts = {one.get("sval", "").strip().lower() for what, one in nodes(times) if what == "sval"}
    return (
        bool(calls & CLOCK or texts & DAYS)
        or any("TIME" in value or "DATE" in value for value in values)
        or any(len(one.get("args", ())) == 1 for one in ages)  # since today
    )


def _operator(expression: Node) -> str:
    return str(expression["name"][-1]["String"]["sval"])


def _has_parameter(tree: Node) -> bool:
    return any(what == "ParamRef" for what, _ in nodes([tree]))
