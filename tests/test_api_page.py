"""docs/api.md: its examples run, and no name that a cell may use is missing."""

from __future__ import annotations

import ast
import inspect
import re
import secrets
from pathlib import Path

import pytest

import workshop_lib
from workshop_lib.paths import CHECKOUT

PAGE = CHECKOUT / "docs" / "api.md"
METHODS = (
    "Workshop", "Database", "ObjectStore", "QueryCache", "RecordCache", "ObjectCache", "Sandbox",
)  # fmt: skip
INNER = {
    "Database": {"reroute", "identity", "create", "create_schema"},
    "ObjectStore": {"identity"},
    "Sandbox": {"database", "describe"},
}
"""For other modules of the package, or attributes that the constructor's arguments name."""


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blocks(text) -> list[tuple[int, str]]:
    """Each example, with the number of the line before its first."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: one.start(1)].count("\n"), one[1]) for one in found]


def test_the_examples_run_one_after_another(blocks, tmp_path, monkeypatch):
    monkeypatch.setenv("WORKSHOP_NAMESPACE", f"api_{secrets.token_hex(4)}")
    monkeypatch.setenv("WORKSHOP_RESULT_FILE", str(tmp_path / "results" / "api.json"))
    names = {"__name__": "api_page"}
    assert len(blocks) > 20
    try:
        for line, block in blocks:
            # Lines count as in the page, so that an error says where it is.
            exec(compile("\n" * line + block, str(PAGE), "exec"), names)  # noqa: S102
    finally:
        if "ws" in names:
            names["ws"].close()


def test_every_public_name_is_imported_in_an_example(blocks):
    used = {
        alias.name
        for _, block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.ImportFrom) and node.module == "workshop_lib"
        for alias in node.names
    }
    assert used == set(workshop_lib.__all__)


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_is_on_the_page(text, kind):
    names = [name for name in dir(getattr(workshop_lib, kind)) if not name.startswith("_")]
    missing = [name for name in names if not re.search(rf"\.{name}\b", text)]
    assert set(missing) == INNER.get(kind, set()) & set(missing)


def test_every_picture_is_on_the_page(text):
    names = [
        name
        for name, found in inspect.getmembers(workshop_lib.plots, inspect.isfunction)
        if Path(inspect.getfile(found)) == Path(workshop_lib.plots.__file__)
        and not name.startswith("_")
    ]
    inner = {"save", "set_note", "show"}
    assert [n for n in names if n not in inner and not re.search(rf"\b{n}\b", text)] == []
