"""The walls of the house hold: who may import whom."""

from __future__ import annotations

import ast

import pytest

import workshop_lib
from workshop_lib.paths import CHECKOUT

HOUSE = CHECKOUT / "workshop_lib"
CLIENTS = {"psycopg2", "redis", "boto3", "botocore", "sqlalchemy"}
PURE = [
    "cache/keys.py",
    "cache/codec.py",
    "cache/fields.py",
    "cache/stats.py",
    "costs.py",
    "measure.py",
    "dataset/generators.py",
    "load/events.py",
    "load/traffic.py",
    "rows.py",
    "simulate/eviction.py",
    "simulate/expiry.py",
    "simulate/streams.py",
    "simulate/theory.py",
    "exercises/engine.py",
    "exercises/nb02.py",
]
TALKING_TO_NOBODY = ["console", "pricing", "sides", "template"]
AWS_WORDS = {"dsql_endpoint", "valkey_endpoint", "aws_region"}


def imports(file):
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((HOUSE / file).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(under=""):
    return sorted(str(p.relative_to(HOUSE)) for p in (HOUSE / under).rglob("*.py"))


def tops(file):
    return {module.split(".")[0] for module in imports(file)}


@pytest.mark.parametrize("file", PURE)
def test_a_pure_room_imports_no_client_and_does_no_input_or_output(file):
    assert tops(file) & (CLIENTS | {"os", "pathlib", "socket", "subprocess", "requests"}) == set()
    calls = {
        getattr(node.func, "id", "")
        for node in ast.walk(ast.parse((HOUSE / file).read_text()))
        if isinstance(node, ast.Call)
    }
    assert "open" not in calls


@pytest.mark.parametrize("file", rooms("cache"))
def test_a_cache_knows_no_database_driver_and_no_aws(file):
    assert tops(file) & {"psycopg2", "boto3", "botocore", "sqlalchemy"} == set()
    ours = {m for m in imports(file) if m.startswith("workshop_lib.")}
    allowed = (
        "workshop_lib.cache",
        "workshop_lib.errors",
        "workshop_lib.forks",
        "workshop_lib.rows",
        "workshop_lib.simulate",
    )
    assert [m for m in ours if not m.startswith(allowed)] == []


@pytest.mark.parametrize("file", rooms("services"))
def test_services_know_nothing_of_caching_or_data(file):
    inner = ("workshop_lib.cache", "workshop_lib.dataset", "workshop_lib.database")
    assert [module for module in imports(file) if module.startswith(inner)] == []


@pytest.mark.parametrize("file", rooms("aws"))
def test_what_makes_the_stacks_knows_nothing_of_running_on_them(file):
    ours = {module for module in imports(file) if module.startswith("workshop_lib.")}
    allowed = (
        "workshop_lib.aws",
        "workshop_lib.dataset",
        "workshop_lib.errors",
        "workshop_lib.load.package",
        "workshop_lib.paths",
        "workshop_lib.services.error_help",
        "workshop_lib.settings",
    )
    assert [
        module for module in ours - {"workshop_lib.services"} if not module.startswith(allowed)
    ] == []


@pytest.mark.parametrize("file", [f for f in rooms() if not f.startswith("aws/")])
def test_nobody_but_the_command_makes_stacks(file):
    ours = {module for module in imports(file) if module.startswith("workshop_lib.aws")}
    names_of_places = "workshop_lib.aws.regions"
    assert all(one.startswith(names_of_places) for one in ours) or file == "cli.py"


@pytest.mark.parametrize("file", [f"aws/{name}.py" for name in TALKING_TO_NOBODY])
def test_what_judges_the_stacks_talks_to_nobody(file):
    assert tops(file) & (CLIENTS | {"socket", "subprocess", "requests"}) == set()


@pytest.mark.parametrize(
    "file", [f for f in rooms() if not f.startswith("services/") and f != "settings.py"]
)
def test_nobody_outside_services_asks_whether_this_is_aws_or_local(file):
    names = {
        node.attr
        for node in ast.walk(ast.parse((HOUSE / file).read_text()))
        if isinstance(node, ast.Attribute)
    }
    allowed = {"aws_region"} if file == "workshop.py" else set()  # noted in the result
    assert names & AWS_WORDS - allowed == set()


@pytest.mark.parametrize("file", rooms())
def test_a_room_says_in_its_first_line_what_it_is_for(file):
    text = ast.get_docstring(ast.parse((HOUSE / file).read_text()))
    assert text
    assert text.splitlines()[0].endswith((".", ":")), file


def test_the_list_of_names_for_notebooks_is_complete_and_loads():
    for name in workshop_lib.__all__:
        assert getattr(workshop_lib, name) is not None
