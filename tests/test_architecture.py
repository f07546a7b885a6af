"""The walls between the modules hold: who may import whom, and what nobody may use."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest

from workshop_lib.paths import CHECKOUT

PACKAGE = CHECKOUT / "workshop_lib"
FILES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))
MODULES = {
    ".".join(("workshop_lib", *file.removesuffix(".py").split("/"))).removesuffix(".__init__")
    for file in FILES
}
CLIENTS = {"psycopg2", "redis", "boto3", "botocore"}
PURE = [
    "advise/advice.py",
    "cache/keys.py",
    "cache/codec.py",
    "cache/stats.py",
    "dataset/generators.py",
    "load/traffic.py",
    "rows.py",
    "advise/statistics_file.py",
    "advise/sql_shape.py",
    "exercises/engine.py",
    "exercises/nb02.py",
]
AWS_WORDS = {"dsql_endpoint", "valkey_endpoint", "aws_region"}


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text())


def imports(file: str, *, everywhere: bool = True) -> set[str]:
    """The modules that a file imports, and what it takes from them.

    Args:
        file: of the package.
        everywhere: also in functions, and for types only.

    """
    found = set()
    for node in ast.walk(tree(file)) if everywhere else tree(file).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` runs the module, and of the package nothing that counts.
            found |= names if everywhere or names <= MODULES else {node.module}
            if everywhere:
                found.add(node.module)
    return found


def tops(file: str) -> set[str]:
    return {module.split(".")[0] for module in imports(file)}


def ours(file: str, *, outside: tuple[str, ...]) -> set[str]:
    """Our own modules that a file imports, but for some and what is below them."""
    names = {name for name in imports(file) if name.startswith("workshop_lib.")}
    return {name for name in names if not name.startswith(outside)}


def files(under: str = "") -> list[str]:
    return [file for file in FILES if file.startswith(under)]


@pytest.mark.parametrize("file", PURE)
def test_a_pure_module_imports_no_client_and_does_no_input_or_output(file):
    assert tops(file) & (CLIENTS | {"os", "pathlib", "socket", "subprocess", "requests"}) == set()
    calls = [node.func for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]
    assert "open" not in {getattr(call, "id", "") for call in calls}


def test_a_cache_knows_no_database_driver_and_no_aws():
    known = tuple(
        f"workshop_lib.{name}" for name in ("cache", "errors", "forks", "rows", "simulate")
    )
    for file in files("cache/"):
        assert tops(file) & {"psycopg2", "boto3", "botocore"} == set(), file
        assert ours(file, outside=known) == set(), file


def test_services_know_nothing_of_caching_or_data():
    inner = ("workshop_lib.cache", "workshop_lib.dataset", "workshop_lib.database")
    for file in files("services/"):
        assert [name for name in imports(file) if name.startswith(inner)] == [], file


def test_what_makes_the_stacks_knows_nothing_of_running_on_them_and_nobody_else_makes_any():
    known = ("errors", "aws.lambda_package", "paths", "services.endpoints", "services.error_help",
             "settings")  # fmt: skip
    others = ours("aws/stacks.py", outside=tuple(f"workshop_lib.{name}" for name in known))
    assert others - {"workshop_lib.services"} == set()
    makers = {file for file in files() if "workshop_lib.aws.stacks" in imports(file)}
    assert makers == {"aws/command.py"}


def test_nobody_outside_services_asks_whether_this_is_aws_or_local():
    # The Region: in a result, and of the sign-in service.
    noted = {"workshop.py", "load/cli.py", "load/drivers.py", "checks.py"}
    for file in set(files()) - {*files("services/"), "settings.py"}:
        names = {node.attr for node in ast.walk(tree(file)) if isinstance(node, ast.Attribute)}
        assert names & AWS_WORDS - ({"aws_region"} if file in noted else set()) == set(), file


def test_no_module_needs_another_that_needs_it():
    graph = {
        name: {one for one in imports(file, everywhere=False) if one in MODULES and one != name}
        for name, file in ((name, _file(name)) for name in MODULES)
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def _file(name: str) -> str:
    path = "/".join(name.split(".")[1:])
    return f"{path}.py" if f"{path}.py" in FILES else f"{path}/__init__.py".lstrip("/")


@pytest.mark.parametrize("file", FILES)
def test_nobody_imports_private_names_of_others_or_ctypes(file):
    """An attribute of others that is private is what ruff's rule SLF refuses."""
    parts = {part for module in imports(file) for part in module.split(".")}
    private = {part for part in parts if part.startswith("_") and not part.endswith("__")}
    assert private | (parts & {"ctypes"}) == set()


def test_opening_the_workshop_imports_no_load_test_no_drawing_and_no_deployment(shared):
    imported = modules_after(
        f"from workshop_lib import open_workshop;"
        f"open_workshop('imports', workshop_namespace={shared.namespace!r}).close()"
    )
    assert imported & {"IPython", "matplotlib", "moto", "numpy", "pandas", "tqdm"} == set()
    unneeded = ("aws", "cache", "dataset.", "exercises", "load", "measure", "namespaces", "queues")
    ours = [name.removeprefix("workshop_lib.") for name in imported if "workshop_lib." in name]
    assert [name for name in ours if name.startswith(unneeded)] == []


def test_help_imports_no_client_and_no_settings():
    imported = modules_after("import workshop_lib.cli")
    assert imported & {*CLIENTS, "matplotlib", "pandas", "pydantic", "rich"} == set()


def modules_after(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_what_is_delivered_is_found_from_the_installed_package_as_well_as_from_a_clone():
    names = {
        file
        for file in files()
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Name) and node.id == "CHECKOUT"
    }
    assert names == {"aws/stacks.py", "paths.py"}  # the former asks git about the clone
