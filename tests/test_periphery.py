"""What is around the notebooks is true of the code: CI, containers, hooks, and the pages."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache

import click
import pytest
import yaml

from workshop_lib.cli import main
from workshop_lib.paths import CHECKOUT
from workshop_lib.settings import Settings

MAKEFILE = (CHECKOUT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
PYTHONS = re.findall(r"python(3\.\d+)", MAKEFILE.split("PYTHON ?=")[1].splitlines()[0])
LISTED = subprocess.run(
    ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True
)
FILES = [CHECKOUT / name for name in LISTED.stdout.split("\0") if name]
PAGES = [file for file in FILES if file.suffix == ".md" and file.name != "CHANGELOG.md"]
FOREIGN = {
    *("bash_source", "zsh_source", "fish_source"),  # click's
    *("CLUSTER_ENDPOINT", "DJANGO_SETTINGS_MODULE", "aurora_dsql_django"),  # of AWS's suites
    *("disable_sync_create_index", "generate_db_connect_auth_token"),  # of Aurora DSQL and boto3
    *("explained.sql", "plans.txt"),  # a reader's
}
"""Names on the pages that are not the workshop's."""
NAME = re.compile(
    r"\w+\.(?:py|pyi|md|toml|sql|yaml|yml|json|txt|ipynb|html|log|xml)\b"  # a file
    r"|(?<![\w.…)])\.[a-z][\w-]+"  # one whose name begins with a dot
    r"|\b\w*[a-z][A-Z]\w*\b|\b[A-Za-z]\w*_\w+\b"  # an identifier
)
HOURS = {"two": 120, "three": 180, "four": 240}


def code_of(page):
    """What a page shows as code."""
    shown = re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)
    return [one for one in shown if not one.startswith("```mermaid")]


@cache
def tree():
    """The names and the text of all files but the pages, with Python's strings put together."""
    texts = [str(file.relative_to(CHECKOUT)) for file in FILES]
    texts += [file.read_text() for file in FILES if file.suffix not in {".md", ".png"}]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


def test_ci_runs_make_test_on_the_oldest_and_the_newest_python_and_may_only_read():
    ci = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "ci.yml").read_text())
    job = ci["jobs"]["test"]
    assert ci["permissions"] == {"contents": "read"}
    assert "permissions" not in job
    assert job["strategy"]["matrix"]["python"] == [PYTHONS[-1], PYTHONS[0]]
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert command.split()[:2] == ["make", "test"]
    (cached,) = [step["with"] for step in job["steps"] if "actions/cache" in step.get("uses", "")]
    assert cached["path"] == ".venv"
    assert all((CHECKOUT / name).is_file() for name in re.findall(r"'([^']+)'", cached["key"]))
    assert "make test" in (CHECKOUT / ".ci" / "run").read_text()


def test_the_container_and_the_hooks_call_what_exists():
    container = json.loads((CHECKOUT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["image"].rpartition(":")[2] in PYTHONS
    files = container["customizations"]["codespaces"]["openFiles"]
    assert [name for name in files if not (CHECKOUT / name).is_file()] == []
    hooks = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    for command in (container["postCreateCommand"], *(hook["entry"] for hook in hooks)):
        make, target, *_ = command.split()
        assert (make, target in TARGETS) == ("make", True)


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(CHECKOUT))


@each_page
def test_a_page_shows_only_commands_and_options_that_exist(page):
    code = "\n".join(code_of(page))
    assert set(re.findall(r"(?<![\w-])make ([a-z]+)\b", code)) - TARGETS == set()
    calls = re.findall(r"(?<![\w.-])workshop ([a-z]+.*)", code)
    calls += [" ".join(call) for call in re.findall(r'make ([a-z]+) ARGS="?([^"`\n]*)', code)]
    for call in calls:
        first, *words = re.split(r"[#;&|`)]", call)[0].split()
        if first not in main.commands and first in TARGETS:  # a script's options
            continue
        command = main.commands[first]
        if isinstance(command, click.Group) and words and words[0] != "…":
            command = command.commands[words[0]]
        known = {"--help", *(option for one in command.params for option in one.opts)}
        if not command.context_settings.get("ignore_unknown_options"):
            assert {word for word in words if word.startswith("-")} - known == set(), call


@each_page
def test_what_a_page_names_is_in_the_tree(page):
    ours = (one for one in code_of(page) if not one.startswith(("```", "`~/")))
    names = {name for one in ours for name in NAME.findall(one) if "NN" not in name}
    assert {name for name in names - FOREIGN if name not in tree()} == set()


@each_page
def test_what_a_page_says_that_the_workshop_says_is_said(page):
    for table in re.findall(r"^\| it says \|.*?\n\n", page.read_text(), re.MULTILINE | re.DOTALL):
        for said in re.findall(r"^\| \*(.+?)\*", table, re.MULTILINE):
            assert [part for part in said.split("…") if part not in tree()] == [], said


@each_page
def test_links_lead_somewhere(page):
    for link, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" in link:
            continue
        target = page.parent / link if link else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor in slugs, f"{link}#{anchor}"


def test_the_readme_leads_to_every_page_and_names_every_setting():
    text = (CHECKOUT / "README.md").read_text()
    pages = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")]
    names = [str(page.relative_to(CHECKOUT)) for page in pages if page.name != "README.md"]
    assert [name for name in names if f"]({name})" not in text] == []
    assert [name for name in Settings.model_fields if f"`{name.upper()}`" not in text] == []


def test_the_table_of_modules_has_each_module_and_no_other():
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+(?:\.py|/))`", row)]
    package = CHECKOUT / "workshop_lib"
    found = {f"{file.relative_to(package).parts[0]}/" for file in FILES if package in file.parents}
    there = {name.removesuffix("/") if ".py" in name else name for name in found}
    assert sorted(named) == sorted(name for name in there if not name.startswith(("__", "py.")))


def test_minutes_in_the_readme_and_in_schedules_are_those_of_the_notebooks():
    readme = (CHECKOUT / "README.md").read_text()
    minutes, optional = {}, 0
    for path in (CHECKOUT / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        about = json.loads(path.read_text())["metadata"]["workshop"]
        needed, more = about["minutes"], about["optional_minutes"]
        time = f"{needed} min (+ {more})" if more else f"{needed} min"
        assert f"](notebooks/{path.name}) | {time} |" in readme
        minutes[path.name[:2]] = needed
        optional += more
    page = (CHECKOUT / "docs" / "for-instructors.md").read_text()
    schedules = re.findall(r"\n\| (\w+) hours: .*? \| ([\d, ]+) \| (\d+) \| (\d+) \|", page)
    assert schedules
    for hours, numbers, taken, left in schedules:
        assert sum(minutes[number] for number in numbers.split(", ")) == int(taken), numbers
        assert int(taken) + int(left) == HOURS[hours], numbers
    whole = re.search(r"(\d+) minutes, and (\d+) more", page)
    assert whole
    assert [int(one) for one in whole.groups()] == [sum(minutes.values()), optional]
