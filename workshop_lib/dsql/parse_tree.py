"""PostgreSQL's parse tree, as libpg_query gives it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_PARSED = 65_536
"""Longest text, in bytes, that a notebook's process parses: the parser goes as deep as it nests."""

Node = dict[str, Any]
"""A structure of PostgreSQL's source; what is empty, 0 or false is left out."""


def nodes(tree: object) -> Iterator[tuple[str, Node]]:
    """All structures in a tree with the names that they stand under. Not recursive: it is deep."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            for name, value in node.items():
                if isinstance(value, dict):
                    yield name, value
                waiting.append(value)


def parts(node: object, *path: str) -> Iterator[Any]:
    """What stands at this path within a node, in each element of the lists on the way."""
    for one in node if isinstance(node, list) else [node]:
        if not path:
            yield one
        elif isinstance(one, dict) and path[0] in one:
            yield from parts(one[path[0]], *path[1:])


def text(node: Node) -> str:
    """A text that stands there as it is; empty for anything else."""
    constant = node.get("A_Const", node)
    return str(constant.get("String", constant.get("sval", {})).get("sval", ""))


def options(statement: Node, part: str = "options") -> dict[str, Node]:
    """The options of a statement by name, each with its argument."""
    return {one["defname"]: one.get("arg", {}) for one in parts(statement, part, "DefElem")}
