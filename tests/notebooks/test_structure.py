"""Every notebook keeps to the workshop's form."""

from __future__ import annotations

import ast
import builtins
import re

import nbformat
import pytest

from tests.notebooks.sections import names_bound, names_used, sections
from workshop_lib.dataset.schema import MADE_IN_NOTEBOOKS, TABLES
from workshop_lib.notebooks import MORE, NOTEBOOKS, check_value, find_notebooks

FOUND = find_notebooks()
COURSE = [found for found in FOUND if MORE not in found.number]
FORBIDDEN = {"input", "getpass", "breakpoint", "flushall", "flushdb", "Thread"}
# nbclient answers an Output widget and can then overlook the reply of the cell (its issue 312).
FORBIDDEN |= {"interact", "interactive", "interactive_output", "Output"}
MOST_MINUTES = 300


@pytest.fixture(params=FOUND, ids=lambda found: found.name)
def found(request):
    return request.param


@pytest.fixture
def notebook(found):
    content = nbformat.read(found.path, as_version=4)
    nbformat.validate(content)
    return content


@pytest.fixture
def source(notebook):
    return "\n".join(cell.source for cell in code(notebook))


@pytest.fixture
def nodes(source):
    """Those of its code, as one program: a magic or a shell command would not parse."""
    return list(ast.walk(ast.parse(source)))


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def test_numbers_are_unique_and_what_is_beyond_the_course_belongs_to_a_notebook_of_it():
    numbers = [found.number for found in FOUND]
    assert len(set(numbers)) == len(numbers) > len(COURSE) > 0
    assert {number.removeprefix(f"{MORE}/") for number in numbers} == {n.number for n in COURSE}


def test_no_output_and_no_execution_count_is_committed(notebook):
    left = [c.id for c in code(notebook) if c.outputs or c.execution_count is not None]
    assert left == []


def test_the_kernel_is_the_environments_python(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info", "workshop"}


def test_it_opens_with_title_reason_time_level_and_needs(notebook, found):
    title, reason, facts = [part for part in texts(notebook)[0].split("\n\n") if part][:3]
    assert re.fullmatch(rf"# {found.number} · [A-Z].+", title)
    assert len(reason) > 40
    optional = notebook.metadata.workshop.optional_minutes
    more = f", optional parts {optional} more" if optional else ""
    assert re.match(rf"\*\*{found.minutes} minutes{more} · level: \w+ · needs: ", facts)


def test_it_ends_with_what_was_found_and_what_matters_in_production(notebook):
    headings = re.findall(r"^## (.+)$", "\n".join(texts(notebook)), re.MULTILINE)
    assert "What you found" in headings
    assert headings[-1] == "In production"
    assert "Further reading:" in texts(notebook)[-1]


def test_one_cell_holds_the_parameters_as_literals_whose_comments_say_their_ranges(notebook, found):
    (tagged,) = (c for c in code(notebook) if "parameters" in c.metadata.get("tags", []))
    values = [statement.value for statement in ast.parse(tagged.source).body]
    assert len(list(map(ast.literal_eval, values))) == len(found.parameters)
    assert {*found.quick, *found.ranges} <= found.parameters.keys()
    lines = (line for line in tagged.source.splitlines() if line.strip())
    comments = dict(re.fullmatch(r"(\w+) = .+  # (.{10,})", line).groups() for line in lines)
    for name, allowed in found.ranges.items():
        most = f"to {allowed['max']:.12g}" if "max" in allowed else "or more"
        assert f"{allowed['min']:.12g} {most}" in comments[name], name
        assert ("two or more" in comments[name]) == (allowed.get("different") == 2), name
        for used in (found.parameters, found.quick):
            check_value(found, name, used.get(name, found.parameters[name]))
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
        assert all("ws.record" in code for code in section.folded)
        assert not any("plots." in code or "database." in code for code in section.folded)


def test_it_opens_the_workshop_once_under_its_own_name(nodes, found):
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    (opened,) = (call for call in calls if getattr(call.func, "id", "") == "open_workshop")
    assert opened.args[0].value == found.name


def test_it_imports_from_the_package_itself_and_never_from_its_modules(nodes):
    modules = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert [m for m in modules if m.startswith("workshop_lib.")] == []


def test_it_uses_nothing_that_hangs_or_harms_a_headless_run(nodes, source):
    names = {getattr(node, "id", getattr(node, "attr", "")) for node in nodes}
    assert names & FORBIDDEN == set()
    assert not re.search(r"\.valkey\.keys\(|asyncio\.run\(", source)


def test_a_table_that_it_makes_is_known_to_the_one_who_clears_up(source):
    made = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", source))
    assert made <= MADE_IN_NOTEBOOKS | set(TABLES)


def test_every_picture_is_shown_with_words_for_those_who_cannot_see_it(nodes):
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    shown = [call.args for call in calls if getattr(call.func, "attr", "") == "show"]
    assigned = [node.targets[0] for node in nodes if isinstance(node, ast.Assign)]
    drawn = [target for target in assigned if getattr(target, "id", "") == "figure"]
    assert {len(words) for words in shown} == {2}
    assert len(shown) >= len(drawn)


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
    assert all(found.minutes for found in FOUND)
    assert sum(found.minutes for found in COURSE) <= MOST_MINUTES


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
    for found in FOUND:
        link = f"[{found.title}]({found.path.relative_to(NOTEBOOKS).as_posix()})"
        row = f"| {link} | {found.minutes} |"
        assert sum(line.startswith(row) for line in rows) == 1, row
