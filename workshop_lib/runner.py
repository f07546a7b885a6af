"""Run notebooks headless through papermill, each in a namespace of its own, and keep results."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm
from traitlets.config import Config

from workshop_lib.errors import ResultError, RunError, WorkshopError, redact
from workshop_lib.kernel_client import Nursery, NurseryManager, WakefulClient
from workshop_lib.load.interrupts import one_interrupt, out_of_hearing
from workshop_lib.notebook_format import nbformat
from workshop_lib.orphans import end_with
from workshop_lib.paths import CHECKOUT, display_path
from workshop_lib.results import read_result, ready_folder, write_json

NOTEBOOKS = CHECKOUT / "notebooks"
ORIGINAL = re.compile(r"\d\d_\w+")
RESULTS = CHECKOUT / "results"
_terminal: TextIO | None = None
_scratch = ""
_shared_turns: Turns | None = None
CELL_LIMIT_S = 600
KERNEL_START_S = 90
LONGEST_PLACE = 55
"""Bytes in the name of the folder for temporary files, for kernels' sockets to be made in it: the
name of a Unix socket has 103 at most on macOS, 107 on Linux."""
SIZES = ("quick", "full")
LONGEST = ("11", "06", "09", "05", "10", "08", "07", "04", "00")
"""The notebooks that take longest at quick size. Where several run at a time these begin first: one
that began last would run on alone."""
ADDED_TAGS = frozenset({"injected-parameters", "papermill-error-cell-tag"})
"""What papermill marks the cells with that it adds to a notebook."""


@dataclass(frozen=True, slots=True)
class Notebook:
    """A notebook as found on disk.

    Attributes:
        name: the file's name without its ending.
        title: its first heading.
        parameters: the literals of its parameters cell, by name.
        quick: the values that make a quick run of it.
        ranges: smallest and largest value, for the parameters whose comment says so; for a list,
            of each of its values.
        several: the lists whose comment asks for two different values or more.
        broken: why its file is not a notebook; empty if it is one.

    """

    path: Path
    name: str
    title: str
    parameters: dict[str, Any]
    quick: dict[str, Any]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    several: frozenset[str] = frozenset()
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One notebook to run.

    Attributes:
        number: its place in the order in which they begin.
        parameters: the values that differ from its own.
        out: the folder for what it leaves.
        at_once: how many run at the same time.

    """

    number: int
    notebook: Notebook
    size: str
    parameters: dict[str, Any]
    out: Path
    namespace: str
    at_once: int


@dataclass(frozen=True, slots=True)
class CellError:
    """Where and why a notebook stopped.

    Attributes:
        cell: its number among all cells, from 1; 0 if no cell was reached.
        source: the cell's code.
        error: the exception's name and text.
        traceback: as a terminal shows it, without colours.

    """

    cell: int
    source: str
    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one notebook went.

    Attributes:
        parameters: all of them, with the values of this run.
        left_behind: why its tables, keys and objects could not be deleted; empty if they were.

    """

    name: str
    title: str
    ok: bool
    seconds: float
    error: CellError | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    left_behind: str = ""


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Notebook]:
    """All numbered notebooks, in order."""
    return [_read(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


def choose(names: Iterable[str], found: list[Notebook]) -> list[Notebook]:
    """The notebooks that these names mean: a number ("02"), a name, or a file's path.

    Copies, such as JupyterLab's 02_cache_a_query-Copy1, are meant by their whole name only.

    Raises:
        RunError: a name means none of them; the text lists those that exist.

    """
    names = list(names)
    originals = [n for n in found if ORIGINAL.fullmatch(n.name)]
    if not names:
        return originals
    chosen = []
    for name in names:
        wanted = Path(name).name.removesuffix(".ipynb")
        number = f"{int(wanted):02d}_" if wanted.isdecimal() else None
        match = [
            n
            for n in found
            if n.name == wanted or (number and n in originals and n.name.startswith(number))
        ]
        if not match:
            known = "\n  ".join(n.name for n in found)
            raise RunError(f"There is no notebook {name!r}. There are:\n  {known}")
        chosen += [n for n in match if n not in chosen]
    return sorted(chosen, key=lambda n: n.name)


def parse_parameters(given: Iterable[str], chosen: list[Notebook]) -> dict[str, dict[str, Any]]:
    """Read NAME=VALUE words as values for the notebooks that have a parameter of that name.

    Returns:
        By notebook name, the values for it, of the same type as its defaults.

    Raises:
        RunError: a word that is not NAME=VALUE, a name that no chosen notebook has (the text
            lists those they have), or a value of another type or outside its range.

    """
    values: dict[str, dict[str, Any]] = {notebook.name: {} for notebook in chosen}
    for word in given:
        name, sign, text = word.partition("=")
        if not sign or not name:
            raise RunError(f"{word!r} is not of the form NAME=VALUE.")
        takers = [notebook for notebook in chosen if name in notebook.parameters]
        if not takers:
            known = "\n  ".join(f"{n.name}: {', '.join(n.parameters) or '(none)'}" for n in chosen)
            raise RunError(f"No chosen notebook has a parameter {name!r}. They have:\n  {known}")
        for notebook in takers:
            value = _convert(name, text, notebook.parameters[name])
            _check_range(name, value, notebook)
            values[notebook.name][name] = value
    return values


def run(
    names: Iterable[str] = (),
    *,
    size: str = "quick",
    parameters: Iterable[str] = (),
    workers: int | None = None,
    out: Path | None = None,
    notebooks: Path = NOTEBOOKS,
    say: Callable[[str], object] = print,
    progress: bool = False,
    prepare: Callable[[], object] = lambda: None,
    finished: Callable[[Path], object] = lambda _: None,
) -> tuple[list[Outcome], Path]:
    """Run notebooks and leave their results in a folder.

    Everything that can be wrong with the request is found before anything starts.

    Args:
        names: which; all if empty.
        size: "quick" or "full".
        parameters: NAME=VALUE words, which win over the size's values.
        workers: notebooks at the same time; more than one disturbs what they measure. If left out,
            one at full size; at quick size, which only shows that all of it works, two where there
            are two processors.
        out: the folder for the results; a new one below `results/` if left out.
        notebooks: the folder that they are in.
        say: gets a line for each finished notebook.
        progress: draw a progress bar over the cells.
        prepare: what has to be done before the first notebook starts; the processes that run them
            start meanwhile.
        finished: gets the executed notebook's path at the end of each.

    Returns:
        The outcomes in the notebooks' order, and the folder.

    Raises:
        RunError: the request cannot be carried out.

    """
    if size not in SIZES:
        raise RunError(f"The size is {size!r}; it must be one of {', '.join(SIZES)}.")
    if workers is None:
        workers = 2 if size == "quick" and (os.cpu_count() or 1) > 1 else 1
    if workers < 1:
        raise RunError(f"workers is {workers}; it must be at least 1.")
    chosen = choose(names, find_notebooks(notebooks))
    given = parse_parameters(parameters, chosen)
    folder = new_folder(out)
    stamp = f"run_{secrets.token_hex(4)}"
    at_once = min(workers, len(chosen))
    jobs = [
        Job(
            number,
            notebook,
            size,
            {**(notebook.quick if size == "quick" else {}), **given[notebook.name]},
            folder,
            f"{stamp}_{notebook.name[:2]}_{number}",
            at_once,
        )
        for number, notebook in enumerate(_in_turn(chosen, at_once))
    ]
    count = "1 notebook" if len(jobs) == 1 else f"{len(jobs)} notebooks"
    together = f", {at_once} at a time" if at_once > 1 else ""
    say(f"{count}, {size} size{together}, into {display_path(folder)}")
    outcomes: dict[str, Outcome] = {}
    log = folder / "kernels.log"
    # One bar over its cells, or, where several would write over each other, over notebooks.
    with (
        closing(_run_jobs(jobs, log, prepare, progress=progress and at_once == 1)) as ended,
        tqdm(
            total=len(jobs), unit="notebook", leave=False, disable=not progress or at_once == 1
        ) as bar,
    ):
        for outcome in ended:
            outcomes[outcome.name] = outcome
            with bar.external_write_mode():
                say(describe(outcome))
            bar.update()
            finished(folder / f"{outcome.name}.ipynb")
    _drop_if_empty(log)
    ordered = [outcomes[notebook.name] for notebook in chosen]
    if folder.parent == RESULTS:
        _point_latest_to(folder)
    return ordered, folder


def _run_jobs(
    jobs: list[Job], log: Path, prepare: Callable[[], object], *, progress: bool
) -> Generator[Outcome, None, None]:
    """Run the notebooks in processes; their outcomes as they end.

    A worker that is killed takes its pool along: what had not begun goes on in another one.
    """
    at_once = jobs[0].at_once if jobs else 0
    # spawn: a forked child would share the parent's sockets and locks.
    context = get_context("spawn")
    # One more: while it waits for its turn it has a kernel ready, or ends and clears up the last.
    processes = min(at_once + 1, len(jobs))
    with _scratch_folder() as scratch:
        while jobs:
            lost = []
            turns = Turns([job.number for job in jobs], at_once, context)
            # Also new kernels: a killed worker may have held the lock of the old ones.
            with _kernels(log, context) as nursery:
                pool = ProcessPoolExecutor(
                    processes,
                    context,
                    initializer=_prepare_worker,
                    initargs=(log, turns, nursery, scratch),
                )
                try:
                    with out_of_hearing():  # until what workers write goes into the log
                        for _ in range(processes):
                            pool.submit(_import_papermill)
                    prepare()
                    futures = {pool.submit(_execute, job, progress): job for job in jobs}
                    for done in as_completed(futures):
                        job, error = futures[done], done.exception()
                        if isinstance(error, BrokenProcessPool) and turns.waits(job.number):
                            lost.append(job)
                        else:
                            yield _outcome(done, job)
                except (KeyboardInterrupt, GeneratorExit):
                    turns.interrupt()  # the signal may have been for this process alone
                    raise
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
            if len(lost) == len(jobs):
                raise RunError(
                    f"The processes that run notebooks end at once; see {display_path(log)}."
                )
            jobs, prepare = lost, lambda: None


def _in_turn(chosen: list[Notebook], at_once: int) -> list[Notebook]:
    """The order in which they begin: their own, or the longest first if several run at a time."""
    if at_once == 1:
        return chosen
    places = {number: place for place, number in enumerate(LONGEST)}
    return sorted(chosen, key=lambda notebook: places.get(notebook.name[:2], len(LONGEST)))


def sweep() -> int:
    """Delete what killed runs left in the local database, cache and store.

    Only if nobody else uses the local engines: a run that is under way keeps its own.

    Returns:
        How many namespaces were cleared.

    """
    from workshop_lib.workshop import abandoned_namespaces, wipe_namespace  # noqa: PLC0415

    found = abandoned_namespaces()
    for namespace in found:
        wipe_namespace(namespace)
    return len(found)


def describe(outcome: Outcome) -> str:
    """One line for a success; for a failure also the cell, its code and its error."""
    line = f"{'✓' if outcome.ok else '✗'} {outcome.name:<28} {outcome.seconds:6.1f} s"
    left = f"\n  not cleared up after it: {outcome.left_behind}" if outcome.left_behind else ""
    if outcome.error is None:
        return line + left
    code = "\n".join(f"    | {row}" for row in outcome.error.source.splitlines())
    return f"{line}\n  cell {outcome.error.cell}: {outcome.error.error}\n{code}{left}"


def _read(path: Path) -> Notebook:
    try:
        return _parsed(path)
    except Exception as error:  # noqa: BLE001 -- whatever is in that file: the others can run
        said, name = redact(error)[:200], display_path(path)
        why = (
            f"{name} is not a notebook that can be read: {said} If a merge left its marks in "
            f"it, resolve the conflict; `git checkout {name}` has the committed one back."
        )
        return Notebook(path, path.stem, path.stem, {}, {}, broken=why)


def _parsed(path: Path) -> Notebook:
    content = nbformat.read(path, as_version=4)
    title, parameters, ranges, several = path.stem, {}, {}, frozenset[str]()
    for cell in content.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# ") and title == path.stem:
            title = cell.source.splitlines()[0][2:]
        if "parameters" in cell.metadata.get("tags", ()):
            parameters = _literals(cell.source)
            ranges, several = _ranges(cell.source), _several(cell.source)
    quick = dict(content.metadata.get("workshop", {}).get("quick", {}))
    return Notebook(path, path.stem, title, parameters, quick, ranges, several)


def _literals(source: str) -> dict[str, Any]:
    """The names of a parameters cell that are assigned a literal, and their values."""
    found = {}
    with suppress(SyntaxError):  # the notebook will say so when it runs
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                with suppress(ValueError):
                    found[statement.targets[0].id] = ast.literal_eval(statement.value)
    return found


def _ranges(source: str) -> dict[str, tuple[float, float]]:
    """What the comments of a parameters cell end with: "1 to 3600", or "0 or more".

    For a list "each 1 to 64" or "1 to 64 each". What follows a semicolon explains: "0 to 1; 0: as
    measured".
    """
    found = {}
    for line in source.splitlines():
        name = line.partition("=")[0].strip()
        both = re.search(r"([\d.]+) to ([\d.]+)( each)?(;.*)?$", line)
        least = re.search(r"([\d.]+) or more(;.*)?$", line)
        if both:
            found[name] = (float(both[1]), float(both[2]))
        elif least:
            found[name] = (float(least[1]), math.inf)
    return found


def _several(source: str) -> frozenset[str]:
    """The parameters whose comment says "two or more"."""
    lines = [line for line in source.splitlines() if "two or more" in line.partition("#")[2]]
    return frozenset(line.partition("=")[0].strip() for line in lines)


def _check_range(name: str, value: Any, notebook: Notebook) -> None:
    """Hold a value, or each of a list's, against what the parameter's comment says.

    Raises:
        RunError: it is outside.

    """
    if name not in notebook.ranges:
        return
    low, high = notebook.ranges[name]
    limits = f"{low:,.12g} or more" if high == math.inf else f"{low:,.12g} to {high:,.12g}"
    for one in value if isinstance(value, list) else [value]:
        number = isinstance(one, int | float) and not isinstance(one, bool)
        if not number or not low <= one <= high:
            each = "each value of " if isinstance(value, list) else ""
            raise RunError(f"{each}{name} must be {limits}; {one!r} is not.")
    least = 2 if name in notebook.several else 1
    if isinstance(value, list) and len(set(value)) < least:
        wanted = "two different values or more" if least > 1 else "a value or more"
        raise RunError(f"{name} takes {wanted}; {value!r} is too few.")


def _convert(name: str, text: str, default: Any) -> Any:
    """The text as a value of the default's type.

    Raises:
        RunError: it is not one.

    """
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text in {"true", "false"} else text)
    except (ValueError, TypeError, SyntaxError):
        value = text
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        kind = {int: "a whole number", float: "a number", bool: "true or false"}.get(
            type(default), f"a {type(default).__name__}"
        )
        raise RunError(f"{name} takes {kind}, like its default {default!r}; {text!r} is not one.")
    return value


def new_folder(out: Path | None) -> Path:
    """The folder for a run, made: the given one, or a new one below `results/`.

    Raises:
        RunError: it cannot be written.

    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = out or RESULTS / f"{stamp}-{secrets.token_hex(4)}"
    try:
        return ready_folder(folder)
    except ResultError as error:
        raise RunError(str(error)) from None


def _point_latest_to(folder: Path) -> None:
    """Swing `results/latest` to this run in one step; of two runs at once the later one wins.

    What is there and no link stays: it is not the workshop's.
    """
    latest = RESULTS / "latest"
    if latest.exists() and not latest.is_symlink():
        return
    draft = RESULTS / f".latest-{secrets.token_hex(4)}"
    draft.symlink_to(folder.name, target_is_directory=True)
    draft.replace(latest)


class Turns:
    """Lets so many notebooks at a time run their cells, in their order.

    Kernels start and end meanwhile: that costs a second or two of each notebook, most of them
    spent waiting, and disturbs what others measure little.
    """

    WAITING, RUNNING, DONE = range(3)

    def __init__(self, waiting: Iterable[int], at_once: int, context: SpawnContext) -> None:
        numbers = list(waiting)
        self._at_once = at_once
        self._states = context.Array("b", [self.DONE] * (max(numbers) + 1), lock=False)
        self._workers = context.Array("q", max(numbers) + 1, lock=False)
        self._changed = context.Condition()
        for number in numbers:
            self._states[number] = self.WAITING

    def enter(self, number: int) -> None:
        """Note which process has the notebook with this number."""
        self._workers[number] = os.getpid()

    def interrupt(self) -> None:
        """Interrupt the processes whose notebooks have not run all their cells."""
        for pid, state in zip(self._workers, self._states, strict=True):
            if pid and state != self.DONE:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)

    def waits(self, number: int) -> bool:
        """Whether the notebook with this number has not begun."""
        return bool(self._states[number] == self.WAITING)

    def begin(self, number: int) -> None:
        """Wait for the turn of the notebook with this number."""
        with self._changed:
            self._changed.wait_for(lambda: self._may_begin(number))
            self._states[number] = self.RUNNING
            self._changed.notify_all()

    def end(self, number: int) -> None:
        """Let the next one go on. Doing it twice is harmless."""
        with self._changed:
            self._states[number] = self.DONE
            self._changed.notify_all()

    def _may_begin(self, number: int) -> bool:
        states = list(self._states)
        return self.WAITING not in states[:number] and states.count(self.RUNNING) < self._at_once


class _Turn:
    """What nbclient tells of one notebook, from when its kernel is ready."""

    def __init__(self, job: Job, progress: bool) -> None:
        self.begun = time.perf_counter()
        self._number, self._name = job.number, job.notebook.name
        self._progress, self._last = progress, -1
        self._bar: Any = None

    def begin(self, notebook: Any) -> None:
        """Wait until it may run its cells; from here on its time counts."""
        cells = notebook.cells
        self._last = max((n for n, c in enumerate(cells) if c.cell_type == "code"), default=-1)
        _turns().begin(self._number)
        self.begun = time.perf_counter()
        if self._progress:
            self._bar = tqdm(
                total=len(cells), desc=self._name[:24], unit="cell", leave=False, file=_terminal
            )

    def cell_done(self, cell_index: int, **_: Any) -> None:
        """Note a cell's end; after the last one the next notebook may run its own."""
        if self._bar is not None:
            self._bar.update(cell_index + 1 - self._bar.n)
        if cell_index == self._last:
            self.end()

    def end(self) -> None:
        """Let the next notebook go on, however this one ended."""
        _turns().end(self._number)
        if self._bar is not None:
            self._bar.close()


def _turns() -> Turns:
    if _shared_turns is None:
        raise RuntimeError("no process of a run")
    return _shared_turns


def _prepare_worker(log: Path, turns: Turns, nursery: Nursery | None, scratch: str) -> None:
    """Die with the command that started this worker; keep the kernels' chatter off the terminal.

    A kernel ends when its worker does. What kernels write to standard error goes into a log beside
    the results; the progress bar keeps the terminal.
    """
    global _terminal, _shared_turns, _scratch  # noqa: PLW0603 -- one worker, one terminal
    _scratch = scratch
    _shared_turns = turns
    NurseryManager.nursery = nursery
    _terminal = os.fdopen(os.dup(2), "w")
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with(os.getppid(), _drop_scratch)


@contextmanager
def _kernels(log: Path, context: SpawnContext) -> Iterator[Nursery | None]:
    """What all workers fork kernels from, where a fork can be trusted: macOS's libraries fail.

    There, None: each kernel starts by itself.
    """
    if sys.platform != "linux":
        yield None
        return
    nursery = Nursery(_kernel_settings(), log, context)
    try:
        yield nursery
    finally:
        nursery.close()


def _import_papermill() -> None:
    """Take the half second for it before there is a notebook to run."""
    import papermill  # noqa: F401, PLC0415 -- only workers need it


def _execute(job: Job, progress: bool) -> Outcome:
    """Run one notebook in this worker process and write what it left."""
    import papermill  # noqa: PLC0415 -- takes half a second that only workers need to spend

    executed = job.out / f"{job.notebook.name}.ipynb"
    result_file = job.out / f"{job.notebook.name}.json"
    result_file.unlink(missing_ok=True)
    turn, error = _Turn(job, progress), None
    _turns().enter(job.number)
    # A second Ctrl-C would interrupt what the first one has begun to clear up.
    with one_interrupt(), _kernel_environment(job, result_file) as scratch:
        try:
            if job.notebook.broken:
                raise RunError(job.notebook.broken)
            papermill.execute_notebook(
                str(job.notebook.path),
                str(executed),
                job.parameters,
                kernel_name="python3",
                cwd=str(job.notebook.path.parent),
                progress_bar=False,  # ours begins with the turn
                on_notebook_start=turn.begin,
                on_cell_executed=turn.cell_done,
                start_timeout=KERNEL_START_S,
                execution_timeout=CELL_LIMIT_S,
                request_save_on_cell_execute=False,
                **({"kernel_manager_class": NurseryManager} if NurseryManager.nursery else {}),
                # Unix sockets in this job's own folder: two kernels that start at the same moment
                # can pick the same TCP ports (or the same default socket names), and then hang.
                config=Config(
                    {
                        "KernelManager": {
                            "transport": "ipc",
                            "ip": f"{scratch}/kernel",
                            "connection_file": f"{scratch}/kernel.json",
                        },
                        "AsyncKernelManager": {"client_factory": WakefulClient},
                    }
                ),
            )
        except papermill.PapermillExecutionError as stopped:
            error = _cell_error(stopped, executed)
        except RunError as stopped:
            error = CellError(0, "", str(stopped), "")
        except Exception as stopped:  # noqa: BLE001 -- a dead kernel, a full disk: report it
            error = CellError(0, "", f"{type(stopped).__name__}: {stopped}", "")
        finally:  # after a Ctrl-C as well
            turn.end()
            seconds = time.perf_counter() - turn.begun
            left_behind = _clear_up(job)
    outcome = Outcome(
        job.notebook.name,
        job.notebook.title,
        error is None,
        seconds,
        error,
        {**job.notebook.parameters, **job.parameters},
        left_behind,
    )
    _write_result(outcome, job, result_file)
    return outcome


@contextmanager
def _kernel_environment(job: Job, result_file: Path) -> Iterator[str]:
    """What a kernel inherits: its own namespace, no personal start-up files, no leftovers."""
    scratch = tempfile.mkdtemp(dir=_scratch, prefix="")
    os.environ.update(
        _kernel_settings(),
        WORKSHOP_NAMESPACE=job.namespace,
        WORKSHOP_RESULT_FILE=str(result_file),
        WORKSHOP_LINGER_SECONDS="0",
        IPYTHONDIR=scratch,
        JUPYTER_RUNTIME_DIR=scratch,
    )
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _scratch_folder() -> Iterator[str]:
    """A folder for what kernels need while they run; of a worker that was killed, too."""
    place = tempfile.gettempdir()
    if len(os.fsencode(place)) > LONGEST_PLACE:
        place = "/tmp"  # noqa: S108 -- a folder of its own in there
    folder = tempfile.mkdtemp(prefix="workshop-", dir=place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _drop_scratch() -> None:
    """Delete the folder of a command that was killed."""
    if _scratch:
        shutil.rmtree(_scratch, ignore_errors=True)


def _kernel_settings() -> dict[str, str]:
    """What is the same for all kernels, and read by some libraries when they are imported."""
    from workshop_lib.services.state import cache_folder  # noqa: PLC0415

    return {
        "TQDM_DISABLE": "1",
        # The environment's own kernel, not one of the same name elsewhere.
        "JUPYTER_PATH": "",
        "JUPYTER_PREFER_ENV_PATH": "1",
        # matplotlib's font list takes seconds to build: it is kept from run to run, here; there is
        # no personal configuration in there.
        "MPLCONFIGDIR": str(cache_folder("matplotlib")),
        "MATPLOTLIBRC": "",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _clear_up(job: Job) -> str:
    """Delete the tables, keys and objects of this run. Returns why that failed, or nothing."""
    from workshop_lib.workshop import wipe_namespace  # noqa: PLC0415 -- as papermill above

    try:
        wipe_namespace(job.namespace)
    except Exception as error:  # noqa: BLE001 -- any client's error; it is reported, not lost
        return f"{type(error).__name__}: {error}"
    return ""


def _cell_error(stopped: Any, executed: Path) -> CellError:
    """Find the failed cell's place in the notebook as it was before papermill added cells to it."""
    number = 0
    content = json.loads(executed.read_text(encoding="utf-8"))
    own = [c for c in content["cells"] if ADDED_TAGS.isdisjoint(c["metadata"].get("tags", ()))]
    for place, cell in enumerate(own, start=1):
        if any(output["output_type"] == "error" for output in cell.get("outputs", ())):
            number = place
    text = "\n".join(stopped.traceback)
    return CellError(number, stopped.source, f"{stopped.ename}: {stopped.evalue}", _plain(text))


def _plain(text: str) -> str:
    """The text without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _write_result(outcome: Outcome, job: Job, file: Path) -> None:
    """Complete what the notebook recorded with what only the runner knows."""
    try:
        recorded = read_result(file)
    except WorkshopError:
        recorded = {"format": 1, "notebook": outcome.name, "measurements": {}, "services": {}}
    recorded |= {
        "title": outcome.title,
        "ok": outcome.ok,
        "seconds": round(outcome.seconds, 3),
        "size": job.size,
        "workers": job.at_once,
        "parameters": outcome.parameters,
        "error": asdict(outcome.error) if outcome.error else None,
    }
    write_json(file, recorded)


def _outcome(done: Future[Outcome], job: Job) -> Outcome:
    """What the worker returned; a worker that died is a failed notebook, not a lost one."""
    try:
        return done.result()
    except Exception as error:  # noqa: BLE001 -- e.g. BrokenProcessPool
        said = f"{type(error).__name__}: {error}"
        outcome = Outcome(
            job.notebook.name,
            job.notebook.title,
            False,
            0.0,
            CellError(0, "", said, ""),
            left_behind=_clear_up(job),
        )
        _write_result(outcome, job, job.out / f"{job.notebook.name}.json")
        return outcome


def _drop_if_empty(log: Path) -> None:
    if log.exists() and not log.stat().st_size:
        log.unlink()


def load_outcomes(folder: Path) -> Mapping[str, dict[str, Any]]:
    """The results of a run by notebook name."""
    return {file.stem: read_result(file) for file in sorted(folder.glob("[0-9][0-9]_*.json"))}
