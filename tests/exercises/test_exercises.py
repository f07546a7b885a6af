"""Every exercise knows a right answer from a wrong one, and says why; notebooks use them all."""

from __future__ import annotations

import ast
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

import workshop_lib.exercises
from workshop_lib import WorkshopError, exercise
from workshop_lib.exercises import EXERCISES
from workshop_lib.exercises.engine import Exercise, Verdict, Wrong, function_of
from workshop_lib.runner import NOTEBOOKS, find_notebooks

ANSWERS = Path(__file__).with_name("answers")
MAX_LINES = 15


def run(source, name="<cell>"):
    """What a cell defines."""
    names = {}
    exec(compile(source, name, "exec"), names)  # noqa: S102 - our own notebooks and solutions
    return names


def collected(name):
    """What the files of answers keep under this name, by exercise."""
    files = [run(file.read_text(), str(file)) for file in sorted(ANSWERS.glob("nb*.py"))]
    return {known: answers for file in files for known, answers in file.get(name, {}).items()}


WRONG, RIGHT = collected("WRONG"), collected("RIGHT")


BY_NOTEBOOK = {
    number: [known for known in EXERCISES if known.id.startswith(number)]
    for number in sorted({known.id[:2] for known in EXERCISES})
}


@pytest.fixture
def opened(ws):
    """Gives the open workshop to an exercise that asks for one."""
    return lambda known: ws if known.needs_workshop else None


def solution_of(known):
    return run(known.solution_source)[known.answer_name]


# Every exercise of the workshop.


def test_ids_are_unique_belong_to_a_notebook_and_every_module_is_registered():
    ids = [known.id for known in EXERCISES]
    assert ids == sorted(set(ids))
    assert {known_id[:3] for known_id in ids} <= {f"{n.name[:2]}." for n in find_notebooks()}
    modules = Path(workshop_lib.exercises.__file__).parent.glob("nb*.py")
    assert {module.stem for module in modules} == {f"nb{number}" for number in BY_NOTEBOOK}


@pytest.mark.parametrize("exercises", BY_NOTEBOOK.values(), ids=BY_NOTEBOOK)
def test_the_solution_is_right_and_so_is_what_is_right_in_another_way(exercises, opened):
    for known in exercises:
        assert known.solution().text == known.solution_source
        assert len([line for line in known.solution_source.splitlines() if line]) <= MAX_LINES
        for answer in (solution_of(known), *RIGHT.get(known.id, ())):
            verdict = known.check(answer, opened(known))
            assert (verdict.state, verdict.message) == ("right", known.praise), (known.id, answer)


@pytest.mark.parametrize("exercises", BY_NOTEBOOK.values(), ids=BY_NOTEBOOK)
def test_a_wrong_answer_is_told_what_is_wrong_with_it(exercises, opened):
    for known in exercises:
        assert len(WRONG.get(known.id, ())) >= 2
        for answer, fragment in WRONG[known.id]:
            verdict = known.check(answer, opened(known))
            assert verdict.state == "wrong", (known.id, answer)
            assert fragment in verdict.message, (known.id, answer)


@pytest.mark.parametrize("exercises", BY_NOTEBOOK.values(), ids=BY_NOTEBOOK)
def test_there_are_hints_and_each_call_shows_the_next(exercises):
    for known in exercises:
        fresh, most = replace(known), len(known.hints)
        assert most >= 2
        shown = [fresh.hint() for _ in range(most + 1)]
        assert [(note.heading, note.text) for note in shown[:most]] == [
            (f"Hint {n} of {most}", hint) for n, hint in enumerate(known.hints, start=1)
        ]
        assert shown[most].text.startswith(known.hints[-1])
        assert f'exercise("{known.id}").solution()' in shown[most].text


@pytest.mark.parametrize("exercises", BY_NOTEBOOK.values(), ids=BY_NOTEBOOK)
def test_an_answer_of_the_wrong_kind_gets_a_verdict(exercises, opened):
    for known in exercises:
        right = solution_of(known)
        for answer in (None, ..., 42, "text", [], object(), type):
            verdict = known.check(answer, opened(known))
            if answer is None or answer is ...:
                assert verdict.state == "untouched"
            elif type(answer) is not type(right):
                assert verdict.state == "wrong"
                assert len(verdict.message) > 20
                if callable(right) and not callable(answer):
                    assert f"`check({known.answer_name})`" in verdict.message


BREAKING = {
    "return {}['no such thing']": ("KeyError: 'no such thing'", "Your line 2"),
    "raise SystemExit(3)": ("SystemExit: 3",),
    "while True:\n        pass": ("did not end within 0.3 s", "Your line"),
}


@pytest.mark.parametrize("exercises", BY_NOTEBOOK.values(), ids=BY_NOTEBOOK)
def test_an_answer_that_raises_leaves_or_never_ends_is_told_what_and_where(exercises, opened):
    for known in exercises:
        if not callable(solution_of(known)):
            continue
        assert known.limit_s <= 30
        for body, said in BREAKING.items():
            limit = 0.3 if "while" in body else known.limit_s
            answer = run(f"def broken(*_):\n    {body}")["broken"]
            verdict = replace(known, limit_s=limit).check(answer, opened(known))
            assert verdict.state == "wrong"
            assert [part for part in said if part not in verdict.message] == [], known.id
    deadline = time.monotonic() + 30
    while looping() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert looping() == []


def looping():
    """The threads in which an answer still runs."""
    return [thread for thread in threading.enumerate() if thread.name == "exercise"]


# The engine, with an exercise made up for the purpose.


def judge_double(answer, ws):
    function = function_of(answer, "double", "x")
    if function(3) != 6:
        raise Wrong(f"`double(3)` returned {function(3)} < 6")
    if ws is not None:
        ws.append("asked")


TOY = Exercise(
    "99.1", "Twice", "double", judge_double, ("One.", "Two."), "double = abs", "As it is."
)


def test_an_unknown_id_lists_those_that_are_known():
    with pytest.raises(WorkshopError) as caught:
        exercise("77.7")
    assert "'77.7'" in str(caught.value)
    assert all(f"{known.id}  {known.title}" in str(caught.value) for known in EXERCISES)


def test_a_known_id_gives_the_same_exercise_each_time():
    assert all(exercise(known.id) is known for known in EXERCISES)


def test_showing_an_exercise_does_not_show_its_solution():
    assert TOY.solution_source not in repr(TOY)
    assert "double" in repr(TOY)


@pytest.mark.parametrize(
    "source",
    [
        "def double(x):\n    ...",
        "def double(x):\n    # your code here\n    ...",
        "def double(x):\n    pass",
        "def double(x):\n    'Twice x.'",
        "def double(x, *more, scale: int = 2) -> int:\n    '''Twice x.'''\n    pass\n    ...",
        "double = lambda x: None",
        "double = ...",
        "double = None",
        "def empty(x): ...\ndouble = empty(3)",
    ],
)
def test_a_placeholder_is_untouched_not_wrong(source):
    verdict = TOY.check(run(source)["double"])
    assert verdict.state == "untouched"
    assert 'exercise("99.1").hint()' in verdict.message


@pytest.mark.parametrize(
    "source",
    [
        "def double(x):\n    return 0",
        "def double(x):\n    x",
        "def double(x):\n    print(end='')",
        "def double(x):\n    return ...",
    ],
)
def test_whoever_has_tried_is_not_untouched(source):
    assert TOY.check(run(source)["double"]).state == "wrong"


def test_parameters_that_do_not_fit_are_named():
    assert "`double(x)`" in TOY.check(lambda: 6).message
    assert "`double()`" in TOY.check(lambda: 6).message


def test_an_asynchronous_function_is_named_as_such():
    async def double(x):
        return 2 * x

    assert "asynchronous" in TOY.check(double).message


def test_the_line_is_found_in_whichever_cell_of_the_notebook_it_is():
    cells = {}
    exec(compile("def helper(x):\n\n    return 1 / 0", "<first>", "exec"), cells)  # noqa: S102
    exec(compile("def double(x):\n    return helper(x)", "<second>", "exec"), cells)  # noqa: S102
    message = TOY.check(cells["double"]).message
    assert "ZeroDivisionError: division by zero" in message
    assert "Your line 3" in message


def test_the_text_of_the_line_is_shown_where_it_is_known():
    def double(x):
        return x.no_such_name

    verdict = replace(TOY, judge=lambda answer, _: answer(3)).check(double)
    assert "return x.no_such_name`" in verdict.message


def test_an_answer_that_waits_and_cannot_be_stopped_is_bounded_all_the_same():
    done = threading.Event()

    def double(_):
        done.wait(280)

    assert "did not end" in replace(TOY, limit_s=0.1).check(double).message
    done.set()
    for thread in looping():
        thread.join(30)


def test_a_check_that_needs_the_workshop_asks_for_it_and_is_handed_it():
    asking = replace(TOY, needs_workshop=True)
    verdict = asking.check(lambda x: 2 * x)
    assert verdict.state == "wrong"
    assert '`exercise("99.1").check(double, ws)`' in verdict.message
    opened = []
    assert asking.check(lambda x: 2 * x, opened).state == "right"
    assert opened == ["asked"]


def test_each_state_has_a_mark_and_a_word_of_its_own():
    shown = [repr(Verdict(state, "Why.")) for state in ("right", "wrong", "untouched")]
    assert shown == ["✓ Right. Why.", "✗ Not right yet. Why.", "… Not tried yet. Why."]


def test_a_verdict_on_a_page_is_marked_up_safely_and_needs_no_colour():
    page = TOY.check(lambda x: f"<b>{x}</b> & `")._repr_html_()
    assert "<code>double(3)</code>" in page
    assert "&lt;b&gt;3&lt;/b&gt; &amp; `" in page
    assert "color" not in page
    assert "background" not in page
    HTMLParser().feed(page)


# The notebooks: whatever is registered is asked, and whatever is asked is registered.


def faults(notebook, number, exercises):
    """What is missing or wrong about the exercises of a notebook, in words."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    if not any("exercise(" in source for source in cells):
        return []
    own = {known.id: known for known in exercises if known.id.startswith(f"{number}.")}
    checks = {}
    found = []
    for position, source in enumerate(cells):
        for used, method, argument in uses(source):
            if used not in own:
                found.append(f"{used} is used and not registered")
            elif method != "check":
                found.append(f".{method}() of {used} is left to the learner")
            elif argument != own[used].answer_name:
                found.append(f"{used} checks {argument}, not {own[used].answer_name}")
            else:
                checks[used] = position
    found += [f"{missing} is not checked" for missing in own if missing not in checks]
    for used, position in checks.items():
        placeholder = cells[position - 1]
        answer = run(placeholder).get(own[used].answer_name) if position else None
        if position == 0 or own[used].answer_name not in run(placeholder):
            found.append(f"{used} has no placeholder just before its check")
        elif own[used].check(answer).state != "untouched":
            found.append(f"the placeholder of {used} is not untouched")
    return found


def uses(source):
    """Each exercise("id").method(argument) in a cell."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Call(func=ast.Name("exercise"), args=[ast.Constant(used)]),
                    attr=method,
                ),
                args=arguments,
            ):
                yield used, method, ast.unparse(arguments[0]) if arguments else ""


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_with_exercises_has_all_of_its_own_each_with_placeholder_and_check(path):
    assert faults(nbformat.read(path, as_version=4), path.stem[:2], EXERCISES) == []


PLACEHOLDER = "def double(x):\n    # your code here\n    ..."
CHECK = 'exercise("99.1").check(double)'


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["from workshop_lib import exercise", PLACEHOLDER, CHECK], []),
        (["print('no exercises here')"], []),
        ([PLACEHOLDER, 'exercise("99.1")'], ["99.1 is not checked"]),
        ([CHECK], ["99.1 has no placeholder just before its check"]),
        (["triple = ...", CHECK], ["99.1 has no placeholder just before its check"]),
        (
            ["def double(x):\n    return 2 * x", CHECK],
            ["the placeholder of 99.1 is not untouched"],
        ),
        ([PLACEHOLDER, CHECK.replace("(double)", "(triple)")],
         ["99.1 checks triple, not double", "99.1 is not checked"]),
        ([PLACEHOLDER, CHECK, CHECK.replace("99.1", "99.2")],
         ["99.2 is used and not registered"]),
        ([PLACEHOLDER, CHECK, 'exercise("99.1").solution()'],
         [".solution() of 99.1 is left to the learner"]),
    ],
)  # fmt: skip
def test_what_a_notebook_lacks_is_noticed(cells, expected):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    assert faults(notebook, "99", [TOY]) == expected
