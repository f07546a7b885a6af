"""Every notebook keeps to the workshop's form."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.sections import names_bound, names_used, sections
from workshop_lib.dataset.schema import MADE_IN_NOTEBOOKS, TABLES
from workshop_lib.runner import MORE, NOTEBOOKS, find_notebooks

FOUND = find_notebooks()
COURSE = sorted(NOTEBOOKS.glob("*.ipynb"))
PATHS = [*COURSE, *sorted((NOTEBOOKS / MORE).glob("*.ipynb"))]
FORBIDDEN = {"input", "getpass", "exec", "eval", "breakpoint"}
MOST_MINUTES = 300


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    return content


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def test_there_are_notebooks_and_their_numbers_are_unique():
    numbers = [found.number for found in FOUND]
    assert numbers[:5] == ["00", "01", "02", "03", "04"]
    assert len(set(numbers)) == len(numbers)
    assert [found.path for found in FOUND] == PATHS


def test_what_is_beyond_the_course_belongs_to_a_notebook_of_the_course():
    beyond = [found.number.removeprefix(f"{MORE}/") for found in FOUND if MORE in found.number]
    assert beyond
    assert set(beyond) <= {path.stem[:2] for path in COURSE}


def test_no_output_and_no_execution_count_is_committed(notebook):
    left = [c.id for c in code(notebook) if c.outputs or c.execution_count is not None]
    assert left == []


def test_the_kernel_is_the_environments_python(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info", "workshop"}
    assert notebook.metadata.workshop.minutes > 0


def test_it_opens_with_title_reason_time_level_and_needs(notebook, path):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    title, reason, facts = [part for part in first.source.split("\n\n") if part][:3]
    (number,) = (found.number for found in FOUND if found.path == path)
    assert re.fullmatch(rf"# {number} · [A-Z].+", title)
    assert len(reason) > 40
    told = notebook.metadata.workshop
    more = f", optional parts {told.optional_minutes} more" if told.optional_minutes else ""
    assert re.match(rf"\*\*{told.minutes} minutes{more} · level: \w+ · needs: ", facts)


def test_it_ends_with_what_was_found_and_what_matters_in_production(notebook):
    headings = re.findall(r"^## (.+)$", "\n".join(texts(notebook)), re.MULTILINE)
    assert "What you found" in headings
    assert headings[-1] == "In production"
    assert "Further reading:" in texts(notebook)[-1]


def test_one_cell_holds_the_parameters_as_literals_with_unit_and_range(notebook):
    tagged = [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for statement in ast.parse(tagged[0].source).body:
        assert isinstance(statement, ast.Assign)
        ast.literal_eval(statement.value)
    assert all(re.search(r"=.+  # .{10,}", line) for line in lines(tagged[0]))
    names = {s.targets[0].id for s in ast.parse(tagged[0].source).body}
    assert set(notebook.metadata.workshop.quick) <= names
    assert set(notebook.metadata.workshop.ranges) <= names


def test_a_parameter_s_comment_says_its_range(path):
    (found,) = (n for n in FOUND if n.path == path)
    content = nbformat.read(path, as_version=4)
    (tagged,) = (c for c in code(content) if "parameters" in c.metadata.get("tags", []))
    comments = {line.partition(" = ")[0]: line.partition("#")[2] for line in lines(tagged)}
    for name, allowed in found.ranges.items():
        most = f"to {allowed['max']:.12g}" if "max" in allowed else "or more"
        assert f"{allowed['min']:.12g} {most}" in comments[name], name
        assert ("two or more" in comments[name]) == (allowed.get("different") == 2), name
    told = {name for name, text in comments.items() if re.search(r"\d to \d|or more", text)}
    assert told == set(found.ranges)


def test_what_is_optional_can_be_left_out(notebook):
    taken = list(sections(notebook))
    for left_out in (section for section in taken if section.optional):
        rest = [s for s in taken if s is not left_out]
        missing = {}
        for place, section in enumerate(rest):
            there = set().union(*(names_bound(s.code) for s in rest[: place + 1]))
            missing[section.heading] = names_used(section.code) - there - set(dir(builtins))
        assert not any(missing.values()), left_out.heading


def test_a_folded_cell_only_records(notebook):
    for section in sections(notebook):
        folded = [code for code in section.code if code not in section.shown]
        assert all("ws.record" in code for code in folded)
        assert not any("plots." in code or "database." in code for code in folded)


def test_it_opens_the_workshop_once_under_its_own_name(notebook, path):
    calls = [
        node
        for cell in code(notebook)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "open_workshop"
    ]
    assert len(calls) == 1
    assert calls[0].args[0].value == path.stem


def test_it_imports_from_the_package_itself_and_never_from_its_rooms(notebook):
    modules = [
        node.module
        for cell in code(notebook)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.ImportFrom)
    ]
    assert [m for m in modules if m.startswith("workshop_lib.")] == []


def test_it_uses_nothing_that_hangs_or_harms_a_headless_run(notebook):
    source = "\n".join(cell.source for cell in code(notebook))
    tree = ast.parse(source)  # a magic or a shell command would not parse
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert names & FORBIDDEN == set()
    assert attributes & {"flushall", "flushdb", "keys_all", "Thread"} == set()
    # nbclient answers an Output widget and can then overlook the reply of the cell (its issue 312).
    assert attributes & {"interact", "interactive", "interactive_output", "Output"} == set()
    assert not re.search(r"\.valkey\.keys\(|asyncio\.run\(", source)


def test_a_table_that_it_makes_is_known_to_the_one_who_clears_up(notebook):
    source = "\n".join(cell.source for cell in code(notebook))
    made = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", source))
    assert made <= MADE_IN_NOTEBOOKS | set(TABLES)


def test_every_picture_is_shown_with_words_for_those_who_cannot_see_it(notebook):
    drawn = shown = 0
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "show":
                assert len(node.args) == 2
                shown += 1
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "figure":
                drawn += 1
    assert shown >= max(drawn, 1)


def test_no_measured_figure_stands_in_the_text(notebook):
    # A duration in prose is a promise about another machine. Limits and TTLs are in the code.
    measured = re.compile(r"\d+([.,]\d+)?\s?(µs|ms)\b")
    assert [text for text in texts(notebook) if measured.search(text)] == []


def test_before_a_measurement_the_learner_is_asked_what_to_expect(notebook):
    asked = [text for text in texts(notebook) if re.search(r"\*\*[^*]+[?.]\*\*", text)]
    assert len(asked) >= 2


def test_of_several_exercises_one_is_not_optional(notebook):
    checks = dict.fromkeys((True, False), 0)
    for section in sections(notebook):
        checks[section.optional] += "\n".join(section.code).count(").check(")
    assert checks[False] >= (sum(checks.values()) > 1)


def test_what_is_not_optional_takes_five_hours_at_most():
    notebooks = [nbformat.read(path, as_version=4) for path in COURSE]
    assert sum(notebook.metadata.workshop.minutes for notebook in notebooks) <= MOST_MINUTES


def test_the_pictures_for_the_projector_are_in_their_notebooks():
    page = (NOTEBOOKS.parent / "docs" / "for-instructors.md").read_text()
    pictures = re.findall(r"^\| (\d\d) \| \*(.+?)\* \|", page, re.MULTILINE)
    assert pictures
    for number, title in pictures:
        (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
        drawn = [c.source for c in code(nbformat.read(path, as_version=4)) if "plots." in c.source]
        assert any(title in source for source in drawn), title


def test_the_map_of_the_course_lists_every_notebook_with_its_minutes():
    rows = (NOTEBOOKS / "README.md").read_text().splitlines()
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        link = f"[{title}]({path.relative_to(NOTEBOOKS).as_posix()})"
        row = f"| {link} | {notebook.metadata.workshop.minutes} |"
        assert sum(line.startswith(row) for line in rows) == 1, row
