"""Every exercise knows a right answer from a wrong one, and says why; notebooks use them all."""

from __future__ import annotations

import re
import threading
import time
import tomllib
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import nbformat
import numpy as np
import pytest

from workshop_lib import WorkshopError, exercise
from workshop_lib.exercises import FOLDER, all_exercises, judges
from workshop_lib.exercises.check import Table, Wrong, define, run, vary
from workshop_lib.exercises.engine import Exercise, Verdict
from workshop_lib.notebooks import NOTEBOOKS, find_notebooks

EXERCISES = all_exercises()
FILES = sorted(Path(__file__).with_name("answers").glob("*.toml"))
ANSWERS = {
    known: answers
    for file in FILES
    for known, answers in tomllib.loads(file.read_text(encoding="utf-8")).items()
}
"""By exercise: answers that are right, and wrong ones with a part of what each is told."""
OUT_OF_REACH = {
    "After {call} the rows are gone, and the `database`",  # needs another way to the database
    "`HSETEX` gives one to each field",  # a command of newer servers
}
"""Texts that no answer is told here."""
MAX_LINES = 15

each = pytest.mark.parametrize("known", EXERCISES, ids=lambda known: known.id)


@pytest.fixture
def opened(ws):
    """Gives the open workshop to an exercise that asks for one."""
    return lambda known: ws if known.table.needs_workshop else None


def solution_of(known):
    return define(known.table.solution, known.table.function)


# Every exercise of the workshop.


def test_ids_are_unique_belong_to_a_notebook_and_every_judge_has_its_exercise():
    ids = [known.id for known in EXERCISES]
    assert ids == sorted(set(ids))
    assert {known_id[:3] for known_id in ids} <= {f"{n.name[:2]}." for n in find_notebooks()}
    assert all(known.id in tomllib.loads((FOLDER / f"{known.id[:2]}.toml").read_text())
               for known in EXERCISES)  # fmt: skip
    assert {judged for number in {one[:2] for one in ids} for judged in judges(number)} <= set(ids)
    assert set(ANSWERS) == set(ids)


@each
def test_the_solution_is_right_and_so_is_what_is_right_in_another_way(known, opened):
    assert known.solution().text == known.table.solution
    assert len([line for line in known.table.solution.splitlines() if line]) <= MAX_LINES
    others = [define(source, known.table.function) for source in ANSWERS[known.id]["right"]]
    assert len(others) >= 2
    for answer in (solution_of(known), *others):
        verdict = known.check(answer, opened(known))
        assert (verdict.state, verdict.message) == ("right", known.table.praise)


@each
def test_each_wrong_answer_is_told_what_is_wrong_with_it_and_each_text_is_told(known, opened):
    wrong = [(suspect.say, suspect.wrong) for suspect in known.table.suspects]
    wrong += ANSWERS[known.id]["wrong"]
    assert len(wrong) >= 2
    assert len({said for said, _ in wrong}) == len(wrong)
    told = []
    for said, source in wrong:
        verdict = known.check(vary(known.table, source), opened(known))
        assert verdict.state == "wrong", source
        assert said in verdict.message, source
        told.append(verdict.message)
    untold = [text for text in texts(known.table) if not any(map(pattern(text).search, told))]
    assert [text for text in untold if not any(known in text for known in OUT_OF_REACH)] == []


def texts(table):
    """Whatever a check may say to a wrong answer."""
    yield from (text for stage in table.mistakes.values() for _, text in stage if text)
    yield from (*table.says.values(), *table.errors.values(), table.otherwise, table.read_only)
    yield from (suspect.say for suspect in table.suspects)
    if known_as_calls(table):
        yield from (why for _, *whys in table.cases for why in whys)


def known_as_calls(table):
    return all(row[0].startswith(f"{table.function}(") and len(row) <= 2 for row in table.cases)


def pattern(text):
    """A regular expression of what is said, whatever the facts are."""
    parts = re.split(r"\{(?!\{)(?:[^{}]|\{[^{}]*\})*\}(?!\})", text)
    return re.compile(".*".join(re.escape(part.replace("{{", "{").replace("}}", "}"))
                                for part in parts), re.DOTALL)  # fmt: skip


@each
def test_there_are_hints_and_each_call_shows_the_next(known):
    fresh, hints = replace(known), known.table.hints
    assert len(hints) >= 2
    shown = [fresh.hint() for _ in range(len(hints) + 1)]
    assert [(note.heading, note.text) for note in shown[:-1]] == [
        (f"Hint {n} of {len(hints)}", hint) for n, hint in enumerate(hints, start=1)
    ]
    assert shown[-1].text.startswith(hints[-1])
    assert f'exercise("{known.id}").solution()' in shown[-1].text


@each
def test_an_answer_that_is_no_function_gets_a_verdict(known, opened):
    for answer in (42, "text", [], object()):
        verdict = known.check(answer, opened(known))
        assert verdict.state == "wrong"
        assert f"`check({known.table.function})`" in verdict.message
    for answer in (None, ...):
        assert known.check(answer, opened(known)).state == "untouched"


@each
@pytest.mark.parametrize(
    "value",
    [42, -1.5, True, "text", b"bytes", [], [[]], {}, {1}, float("nan"), print, np.ones(2)],
    ids=repr,
)
def test_an_answer_that_returns_whatever_it_likes_is_told_what_is_wrong(known, opened, value):
    answer = define("def odd(*_):\n    return value", "odd")
    answer.__globals__["value"] = value
    verdict = known.check(answer, opened(known))
    assert verdict.state == "wrong"
    assert "stopped with" not in verdict.message


BREAKING = {
    "return {}['no such thing']": ("KeyError: 'no such thing'", "Your line 2"),
    "raise SystemExit(3)": ("SystemExit: 3",),
}


@each
def test_an_answer_that_raises_or_leaves_is_told_what_and_where(known, opened):
    assert known.table.limit_s <= 30
    for body, said in BREAKING.items():
        verdict = known.check(define(f"def broken(*_):\n    {body}", "broken"), opened(known))
        assert verdict.state == "wrong"
        assert [part for part in said if part not in verdict.message] == []


@each
def test_an_answer_that_never_ends_is_stopped_and_told_where(known, opened):
    answer = define("def endless(*_):\n    while True:\n        pass", "endless")
    for limit_s in (0.3, 3.0, 30.0):  # on a busy machine its turn may come late
        table = msgspec.structs.replace(known.table, limit_s=limit_s)
        verdict = replace(known, table=table).check(answer, opened(known))
        assert verdict.state == "wrong"
        if "Your line" in verdict.message:
            break
    assert f"did not end within {limit_s:g} s" in verdict.message
    assert "Your line 2" in verdict.message or "Your line 3" in verdict.message
    deadline = time.monotonic() + 30
    while looping() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert looping() == []


def looping():
    """The threads in which an answer still runs."""
    return [thread for thread in threading.enumerate() if thread.name == "exercise"]


# The engine, with an exercise made up for the purpose.


TOY = Exercise(
    "99.1",
    Table(
        title="Twice",
        function="double",
        hints=["One.", "Two."],
        solution="def double(x):\n    if x == 'one':\n        raise ValueError\n    return 2 * x",
        praise="As it is.",
        cases=[["double(3)"], ["double(x=[1])", "Lists, too."], ["double('one')"]],
        read_only="Leave it alone.",
    ),
)


def toy(**changes):
    """The exercise, with a table that is changed."""
    return replace(TOY, table=msgspec.structs.replace(TOY.table, **changes))


def test_an_unknown_id_lists_those_that_are_known():
    with pytest.raises(WorkshopError) as caught:
        exercise("77.7")
    assert "'77.7'" in str(caught.value)
    assert all(f"{known.id}  {known.table.title}" in str(caught.value) for known in EXERCISES)


def test_a_known_id_gives_the_same_exercise_each_time():
    assert all(exercise(known.id) is known for known in EXERCISES)


def test_showing_an_exercise_does_not_show_its_solution():
    assert TOY.table.solution not in repr(TOY)
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
    verdict = TOY.check(define(source, "double"))
    assert verdict.state == "untouched"
    assert 'exercise("99.1").hint()' in verdict.message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def double(x):\n    return 0", "`double(3)` returned `0`. Expected: `6`."),
        ("def double(x):\n    return 2.0 * x", "returned `6.0`, of type `float`. Expected: `6`."),
        ("def double(x):\n    x", "returned `None`. Expected: `6`. Is there a `return`?"),
        ("def double(x):\n    return x + x",
         "`double('one')` returned `'oneone'`. Expected: a `ValueError`"),
        ("def double(x):\n    return 6 if x == 3 else [2]",
         "`double(x=[1])` returned `[2]`. Expected: `[1, 1]`. Lists, too."),
        ("def double(x):\n    x += x\n    return x",
         "`double(x=[1])` changed its argument `x`, which is now `[1, 1]`. Leave it alone."),
        ("def double(x, seen=[]):\n    seen.append(x)\n    return 2 * x + len(seen) - 1",
         "was called twice and returned `6`, then returned `7`. Expected: the same both times."),
        ("def double(x):\n    return 2 * y", "`double(3)` stopped with `NameError"),
        ("def double():\n    return 6", "The check calls `double(x)`; yours is `double()`"),
        ("async def double(x):\n    return 2 * x", "`double` is asynchronous"),
        ("def double(x):\n    print(end='')", "returned `None`"),
        ("def double(x):\n    return ...", "returned `Ellipsis`"),
    ],
)  # fmt: skip
def test_a_wrong_answer_is_told_what_came_and_what_was_expected(source, said):
    verdict = TOY.check(define(source, "double"))
    assert verdict.state == "wrong"
    assert said in verdict.message


def test_a_name_that_a_solution_does_not_have_is_no_edit_of_it():
    with pytest.raises(LookupError, match="has no 'triple'"):
        vary(TOY.table, {"triple": "double"})


def test_what_a_mistake_knows_and_says_stands_in_the_table():
    mistakes = {"returned": [("not right and got > x", "{got!r} is {got - 2 * x:+d} too many.")]}
    verdict = toy(mistakes=mistakes, cases=[["double(3)"]]).check(lambda x: 2 * x + 1)
    assert "`double(3)` returned `7`. 7 is +1 too many." in verdict.message


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

    assert "return x.no_such_name`" in TOY.check(double).message


def test_an_answer_that_waits_and_cannot_be_stopped_is_bounded_all_the_same():
    done = threading.Event()

    def double(_):
        done.wait(280)

    assert "did not end" in toy(limit_s=0.1).check(double).message
    done.set()
    for thread in looping():
        thread.join(30)


def test_without_threads_as_in_a_browser_an_answer_is_checked_and_bounded(monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    def double(_):
        while True:
            pass

    monkeypatch.setattr(threading.Thread, "start", start)
    assert TOY.check(solution_of(TOY)).state == "right"
    assert "did not end" in toy(limit_s=0.1).check(double).message


def test_an_answer_cannot_hide_what_is_wrong_with_it():
    def judge(check):
        def fail():
            raise Wrong("It is wrong.")

        check.call(fail, shown="`double`")

    def double(x):
        with suppress(Exception):
            x()

    assert replace(TOY, judge=judge).check(double).message.startswith("It is wrong.")


def test_a_check_that_needs_the_workshop_asks_for_it_and_is_handed_it():
    asking = replace(toy(needs_workshop=True), judge=lambda check: check.ws.append("asked"))
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
    page = TOY.check(lambda x: f"<b>{x}</b> & ")._repr_html_()
    assert "<code>double(3)</code>" in page
    assert "<code>&#x27;&lt;b&gt;3&lt;/b&gt; &amp; &#x27;</code>" in page
    assert "color" not in page
    assert "background" not in page
    HTMLParser().feed(page)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_checks_each_of_its_exercises_just_after_its_placeholder(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    own = {known.id: known.table.function for known in EXERCISES if known.id[:2] == path.stem[:2]}
    checked = {}
    for placeholder, source in pairwise(code):
        if found := re.match(r'exercise\("(.+)"\)\.check\((\w+)', source):
            known, function = found.groups()
            checked[known] = function
            assert exercise(known).check(run(placeholder)[function]).state == "untouched"
    assert checked == own
    assert "".join(code).count("exercise(") == len(own)  # hints are left to the learner
