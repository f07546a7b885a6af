"""What Aurora DSQL allows: lists over PostgreSQL's parse tree; what is not on them is refused.

The lists are in allowed.toml. What they cannot say is said here, a function for each structure.
Texts and codes are the service's where they are known, as answered in autumn 2026;
docs/dsql-rules.md says which are ours.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from workshop_lib.dsql.parse_tree import Node, nodes, options, parts, text

LISTS = tomllib.loads(Path(__file__).with_name("allowed.toml").read_text())
WORDS = {name: frozenset(words.split()) for name, words in LISTS["words"].items()}
TEXTS: dict[str, str] = LISTS["texts"]
SHOWN: dict[str, str] = LISTS["shown"]
NOT_RUN = WORDS["geometry"] | WORDS["text_search"]
"""Types that are refused in expressions as well."""
UTF8 = frozenset({"utf8", "utf-8", "unicode", "sql_ascii"})
"""What clients call the encoding that the service knows; the last one leaves bytes as they are."""
NO_CACHE = (
    "{} is not supported without an explicit cache size. "
    "please define CACHE greater than or equal to 65536 or equal to 1"
)


class Refusal(NamedTuple):
    """Why Aurora DSQL refuses a statement: SQLSTATE and text."""

    code: str
    message: str


RULES_SCHEMA = "dsql_rules"
NO_SCHEMA = Refusal("42501", f"permission denied for schema {RULES_SCHEMA}")
"""The rules' own schema: what is in it is for the front alone."""


def not_supported(message: str) -> Refusal:
    """The refusal that most are."""
    return Refusal("0A000", message)


def refuse(kind: str, statement: Node) -> Refusal | None:
    """What the service would answer to a statement, as far as its text shows; None: run it.

    Args:
        kind: the structure's name, such as "SelectStmt".
        statement: what is in it. ASYNC, which PostgreSQL does not know, is a part "async" of it,
            and "written" what an index's statement says between the table and the columns.

    """
    found = [(kind, statement), *nodes(statement)]
    return _first(_refuse_node(name, node) for name, node in found)


def _first(found: Iterable[Refusal | None]) -> Refusal | None:
    return next(filter(None, found), None)


def _refuse_node(kind: str, node: Node) -> Refusal | None:
    if kind[0].isupper() and kind.endswith("Stmt") and kind not in WORDS["statements"]:
        return not_supported(TEXTS.get(kind, f"unsupported statement: {kind.removesuffix('Stmt')}"))
    if node.get("schemaname") == RULES_SCHEMA:
        return NO_SCHEMA
    for path, rule in PARTS[kind]:
        excused = any(any(parts(node, *one.split("."))) for one in rule.get("unless", ()))
        if not excused and (found := _refuse_part(rule, list(parts(node, *path)))):
            return found
    return RULES[kind](node) if kind in RULES else None


def _refuse_part(rule: dict[str, Any], values: list[Any]) -> Refusal | None:
    """What a rule of allowed.toml says of the values that stand at its path."""
    if "most" in rule:
        return Refusal("54011", rule["text"]) if len(values) > rule["most"] else None
    for value in values:
        message = rule.get("texts", {}).get(str(value), rule.get("text"))
        if message and value not in rule.get("only", "").split():
            shown = str(value).removeprefix("TRANS_STMT_").removeprefix("AT_")
            return not_supported(message.format(shown.replace("_", " ").upper()))
    return None


PARTS: defaultdict[str, list[tuple[list[str], dict[str, Any]]]] = defaultdict(list)
"""The rules of allowed.toml by the kind of structure that they are of."""
for name, rule in LISTS["parts"].items():
    PARTS[name.partition(".")[0]].append((name.split(".")[1:], rule))


# --- types, columns, sequences ---


def type_name(node: Node) -> str:
    """The inner name of a built-in type, such as int4; empty for one of another schema."""
    names = list(parts(node, "names", "String", "sval"))
    return str(names[-1]) if len(names) == 1 or names[:-1] == ["pg_catalog"] else ""


def _refuse_type(node: Node) -> Refusal | None:
    """The type of a column."""
    name = type_name(node)
    if name in WORDS["serial"]:
        return Refusal("42704", f'type "{name}" does not exist')
    array = "[]" if "arrayBounds" in node else ""
    if array or name in NOT_RUN | WORDS["no_column"]:
        return not_supported(f"datatype {SHOWN.get(name, name)}{array} not supported")
    return None


def _column(column: Node) -> Refusal | None:
    found = _refuse_type(column.get("typeName", {}))
    name = type_name(column.get("typeName", {}))
    kinds = set(parts(column, "constraints", "Constraint", "contype"))
    if found or "CONSTR_IDENTITY" not in kinds or name == "int8":
        return found
    return not_supported(
        f"datatype {SHOWN.get(name, name)} not supported, identity column type must be bigint"
    )


def _sequence(statement: Node, what: str) -> Refusal | None:
    """What makes a sequence. The size of the cache, the server sees (rules.sql)."""
    given = options(statement)
    if "as" in given and type_name(given["as"]["TypeName"]) != "int8":
        return Refusal("22023", "sequence type must be bigint")
    return None if "cache" in given else not_supported(NO_CACHE.format(what))


def _constraint(constraint: Node) -> Refusal | None:
    identity = constraint["contype"] == "CONSTR_IDENTITY"
    return _sequence(constraint, "identity column") if identity else None


# --- statements ---


def may_set(name: str, value: str = "") -> Refusal | None:
    """Whether a session may set a parameter, and to this value."""
    lower = name.lower()
    if lower not in WORDS["settable"] and not lower.startswith("enable_"):
        return not_supported(f'setting configuration parameter "{name}" not supported')
    if lower == "client_encoding" and value and value.strip("'").lower() not in UTF8:
        return Refusal("22023", f'invalid value for parameter "client_encoding": "{value}"')
    return None


def _set(statement: Node) -> Refusal | None:
    kind, name = statement["kind"], statement.get("name", "")
    if kind == "VAR_RESET_ALL" or (kind, name) in UNSET:
        return None
    if kind == "VAR_SET_MULTI":
        return _first(map(_option, parts(statement, "args", "DefElem"))) or may_set(name)
    return may_set(name, next(map(text, parts(statement, "args")), ""))


UNSET = {
    ("VAR_RESET", "session_authorization"),
    ("VAR_SET_DEFAULT", "session_authorization"),
    ("VAR_SET_MULTI", "SESSION CHARACTERISTICS"),
}


def _option(option: Node) -> Refusal | None:
    level = text(option.get("arg", {})).upper()
    if option["defname"] != "transaction_isolation" or level == "REPEATABLE READ":
        return None
    return not_supported(f"Unsupported isolation level: {level}")


def _function_call(call: Node) -> Refusal | None:
    name = list(parts(call, "funcname", "String", "sval"))[-1]
    if name in WORDS["inner_functions"]:
        return not_supported(f"function {name} not supported")
    arguments = list(map(text, parts(call, "args")))
    if name in WORDS["geometry"]:
        return not_supported(f"datatype {name} not supported")
    if name in WORDS["search_functions"]:
        named = arguments[0] if len(arguments) > 1 else ""
        return Refusal("42704", f'text search configuration "{named or "english"}" does not exist')
    if name == "set_config":
        return may_set(*arguments[:1])
    return None


def _name(string: Node) -> Refusal | None:
    """Part of a name; a function of one argument is also called as `(argument).function`."""
    name = string.get("sval", "")
    if name == RULES_SCHEMA:
        return NO_SCHEMA
    if name in WORDS["run_text"] or name.startswith(("pg_advisory_", "pg_try_advisory_")):
        return not_supported(f"function {name} not supported")
    return None


def _cast(cast: Node) -> Refusal | None:
    name = type_name(cast["typeName"])
    return not_supported(f"datatype {name} not supported") if name in NOT_RUN else None


def _index(statement: Node) -> Refusal | None:
    # The tree does not tell a method that was written from the usual one.
    if "using" in statement["written"].lower().split():
        return not_supported(f"index access method {statement['accessMethod']} not supported")
    return None


def _drop(statement: Node) -> Refusal | None:
    if statement["removeType"] == "OBJECT_TRIGGER" and "missing_ok" not in statement:
        return not_supported("unsupported object in DROP statement")
    return None


RULES: dict[str, Callable[[Node], Refusal | None]] = {
    "CreateStmt": lambda s: _first(map(_column, parts(s, "tableElts", "ColumnDef"))),
    "AlterTableCmd": lambda c: _first(map(_column, parts(c, "def", "ColumnDef"))),
    "Constraint": _constraint,
    "CreateDomainStmt": lambda s: _refuse_type(s["typeName"]),
    "CreateSeqStmt": lambda s: _sequence(s, "CREATE SEQUENCE"),
    "VariableSetStmt": _set,
    "DefElem": _option,
    "FuncCall": _function_call,
    "funccall": _function_call,  # of CALL
    "String": _name,
    "TypeCast": _cast,
    "IndexStmt": _index,
    "DropStmt": _drop,
}
"""What the lists cannot say of a structure."""
