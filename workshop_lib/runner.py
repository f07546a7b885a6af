"""Run notebooks headless through papermill, each in a namespace of its own, and keep results."""

from __future__ import annotations

import ast
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import nbformat
import psutil
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill import PapermillExecutionError, execute_notebook
from traitlets import Dict, default
from traitlets.config import Config

from workshop_lib.errors import RunError, WorkshopError, redact
from workshop_lib.namespaces import abandoned_namespaces, new_run, wipe_namespace
from workshop_lib.paths import NOTEBOOKS, RESULTS, cache_folder, display_path
from workshop_lib.report import export, heading, write_report
from workshop_lib.results import (
    CellError,
    Result,
    new_result,
    read_result,
    ready_folder,
    write_json,
)

MORE = "more"
"""The folder, below the notebooks, of those beyond the course."""
ORIGINAL = re.compile(r"\d\d_\w+")
CELL_LIMIT_S = 600
KERNEL_START_S = 90
MAX_FOLDER_BYTES = 55
"""Of the path that temporary files are in, for kernels' sockets to be made there: the name of a
Unix socket has 103 bytes at most on macOS, 107 on Linux."""
KINDS = {bool, int, float, str}
"""What a parameter may be that a command sets, or a list of."""
SCRATCH = f"workshop-{os.getuid()}-"


@dataclass(frozen=True, slots=True)
class Notebook:
    """A notebook as found on disk, with what its metadata say below `workshop`.

    Attributes:
        name: the file's name without its ending.
        title: its first heading.
        parameters: the literals of its parameters cell that are of KINDS, or lists of them, by
            name.
        minutes: how long a learner takes, optional parts apart.
        quick: the values that make a quick run of it.
        ranges: of parameters, `min` and `max`; of lists, those of each value, and `different`, how
            many different ones are needed.
        seconds: roughly how long a quick run of it takes.
        measures_load: whether notebooks that run at the same time would spoil what it shows.
        broken: why its file is not a notebook; empty if it is one.

    """

    path: Path
    name: str
    title: str
    parameters: dict[str, Any] = field(default_factory=dict)
    minutes: int = 0
    quick: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, dict[str, int | float]] = field(default_factory=dict)
    seconds: float = 0.0
    measures_load: bool = False
    broken: str = ""

    @property
    def number(self) -> str:
        """Its short name: "06", or "more/06" beyond the course."""
        return _number(self.path)

    @property
    def full_name(self) -> str:
        """Its name with the folder that tells it from one of the course."""
        return f"{self.number}{self.name[2:]}"


@dataclass(frozen=True, slots=True)
class Job:
    """One notebook to run.

    Attributes:
        parameters: the values that differ from its own.
        out: the folder for what it leaves.

    """

    notebook: Notebook
    size: str
    parameters: dict[str, Any]
    out: Path
    namespace: str

    def file(self, ending: str) -> Path:
        """The file with this ending among what it leaves."""
        return self.out.absolute() / f"{self.notebook.name}{ending}"


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Notebook]:
    """All numbered notebooks, in order: those of the course, then those beyond it."""
    folders = (folder, folder / MORE)
    return [_read(path) for one in folders for path in sorted(one.glob("[0-9][0-9]_*.ipynb"))]


def choose(names: Iterable[str], found: list[Notebook]) -> list[Notebook]:
    """The notebooks that these names mean: a number ("02", "more/06"), a name, or a file's path.

    Copies, such as JupyterLab's 02_cache_a_query-Copy1, are meant by their whole name only.

    Raises:
        RunError: there are none, or a name means none of them; the text lists those that exist.

    """
    names = list(names)
    if not found:
        raise RunError(
            "There are no notebooks here. `workshop lab` copies them into a folder "
            f"({NOTEBOOKS.parent}) and opens them."
        )
    originals = [n for n in found if ORIGINAL.fullmatch(n.name)]
    if not names:
        return originals
    chosen = [one for name in names for one in _meant(name, found, originals)]
    return [n for n in found if n in chosen]


def _meant(name: str, found: list[Notebook], originals: list[Notebook]) -> list[Notebook]:
    wanted = Path(name).name.removesuffix(".ipynb")
    match = [n for n in found if n.name == wanted]
    if wanted.isdecimal():
        number = _number(Path(name).with_name(f"{int(wanted):02d}_"))
        match = [n for n in originals if n.number == number]
    if not match:
        listed = "\n  ".join(one.full_name for one in found)
        raise RunError(f"There is no notebook {name!r}. There are:\n  {listed}")
    return match


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
            known = "\n  ".join(f"{n.full_name}: {', '.join(n.parameters)}" for n in chosen)
            raise RunError(f"No chosen notebook has a parameter {name!r}. They have:\n  {known}")
        for notebook in takers:
            default = notebook.parameters[name]
            try:
                value = text if isinstance(default, str) else yaml.safe_load(text)
                values[notebook.name][name] = check_value(notebook, name, value)
            except (yaml.YAMLError, ValueError, msgspec.ValidationError) as error:
                raise RunError(
                    f"{word} is not possible: {redact(error)}. Its default is {default!r}."
                ) from None
    return values


def check_value(notebook: Notebook, name: str, value: Any) -> Any:
    """A value for a parameter, of its default's type and within its range.

    Raises:
        msgspec.ValidationError: it is not.

    """
    limits, default = notebook.ranges.get(name, {}), notebook.parameters[name]
    values = default if isinstance(default, list) else [default]
    kind = float if float in map(type, values) else type(next(iter(values), ""))
    bounds = msgspec.Meta(ge=limits.get("min"), le=limits.get("max"))
    one: Any = Annotated[kind, bounds] if kind in {int, float} else kind
    found = msgspec.convert(value, list[one] if values is default else one)
    if isinstance(found, list) and len(set(found)) < (least := limits.get("different", 1)):
        raise msgspec.ValidationError(f"Expected {least} or more different values")
    return found


def run(
    names: Iterable[str] = (),
    *,
    size: str = "quick",
    parameters: Iterable[str] = (),
    workers: int | None = None,
    out: Path | None = None,
    notebooks: Path = NOTEBOOKS,
    say: Callable[[str], object] = print,
    prepare: Callable[[], object] = lambda: None,
) -> tuple[list[Result], Path]:
    """Run notebooks and leave their results in a folder.

    Everything that can be wrong with the request is found before anything starts.

    Args:
        names: which; all if empty.
        size: "quick" or "full".
        parameters: NAME=VALUE words, which win over the size's values.
        workers: notebooks at the same time; more than one disturbs what they measure. If left out,
            one at full size; at quick size, which only shows that all of it works, two where there
            are two processors. Those that measure under load run alone in any case.
        out: the folder for the results; a new one below `results/` if left out.
        notebooks: the folder that they are in.
        say: gets a line for each finished notebook.
        prepare: what has to be done before the first kernel starts.

    Returns:
        The results in the notebooks' order, and the page over them, which is written also where
        the run is interrupted.

    Raises:
        WorkshopError: the request cannot be carried out.

    """
    if workers is None:
        workers = 2 if size == "quick" and (os.cpu_count() or 1) > 1 else 1
    chosen = choose(names, find_notebooks(notebooks))
    given = parse_parameters(parameters, chosen)
    unique = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    folder = ready_folder(out or RESULTS / unique)
    if folder == notebooks.resolve():
        raise RunError(
            f"{display_path(folder)} has the notebooks themselves: choose another --out."
        )
    stamp = new_run()
    jobs = [
        Job(
            notebook,
            size,
            {**(notebook.quick if size == "quick" else {}), **given[notebook.name]},
            folder,
            f"{stamp}_{notebook.name[:2]}_{number}",
        )
        for number, notebook in enumerate(chosen)
    ]
    count = f"{len(jobs)} notebook{'s' * (len(jobs) != 1)}, {size} size"
    at_once = min(workers, len(jobs))
    say(f"{count}{f', {at_once} at a time' * (at_once > 1)}, into {display_path(folder)}")
    results: dict[str, Result] = {}
    prefix = f"{SCRATCH}{os.getpid()}-"  # says of which process it is
    with tempfile.TemporaryDirectory(prefix=prefix, dir=_short_folder()) as scratch:
        prepare()
        for job in jobs:  # what an earlier run left there is not this one's
            for ending in (".json", ".ipynb", ".html"):
                job.file(ending).unlink(missing_ok=True)
        try:
            for result in _run_all(jobs, workers, folder / "kernels.log", scratch):
                results[result.notebook] = result
                say(describe(result))
        except KeyboardInterrupt:
            why = CellError(0, "", "The run was interrupted before this had finished.")
            for job in jobs:
                if job.notebook.name not in results:
                    _keep(job, ok=False, error=why, interrupted=True, workers=workers)
            raise
        finally:
            page = write_report(folder)
    if folder.parent == RESULTS:
        _point_latest_to(folder)
    return [results[notebook.name] for notebook in chosen], page


def sweep() -> int:
    """Delete what killed runs left: temporary files, and in the database, the cache and the store.

    A run that is under way keeps its own: `abandoned_namespaces`.

    Returns:
        How many namespaces were cleared.

    """
    for folder in _short_folder().glob(f"{SCRATCH}*-*"):
        if not psutil.pid_exists(int(folder.name.split("-")[2])):
            shutil.rmtree(folder, ignore_errors=True)
    found = abandoned_namespaces()
    wipe_namespace(*found)
    return len(found)


def describe(result: Result) -> str:
    """One line for a success; for a failure also the cell, its code and its error."""
    lines = [f"{'✓' if result.ok else '✗'} {result.notebook:<28} {result.seconds:6.1f} s"]
    if error := result.error:
        where = f"cell {error.cell}: " if error.cell else ""
        lines.append(f"  {where}{error.error}")
        lines += [f"    | {row}" for row in error.source.splitlines()]
    return "\n".join([*lines, *(f"  {why}" for why in result.left_undone)])


# --- reading notebooks and values ---


def _number(path: Path) -> str:
    beyond = f"{MORE}/" if path.parent.name == MORE else ""
    return f"{beyond}{path.name.partition('_')[0]}"


def _read(path: Path) -> Notebook:
    try:
        content = nbformat.read(path, as_version=4)
        tagged = (c for c in content.cells if "parameters" in c.metadata.get("tags", ()))
        parameters = _literals(next((cell.source for cell in tagged), ""))
        known = {"path": path, "name": path.stem, "title": heading(content) or path.stem}
        told = {**content.metadata.get("workshop", {}), **known, "parameters": parameters}
        return msgspec.convert(told, Notebook)
    except Exception as error:  # noqa: BLE001 -- whatever is in that file: the others can run
        why = (
            f"{display_path(path)} is not a notebook that can be read: {redact(error)[:200]}. If a "
            "merge left its marks in it, resolve the conflict; `workshop notebook reset` puts the "
            "delivered one back."
        )
        return Notebook(path, path.stem, path.stem, broken=why)


def _literals(source: str) -> dict[str, Any]:
    """What a parameters cell assigns, by name: literals of KINDS, and lists of them."""
    found = {}
    with suppress(SyntaxError):  # the notebook will say so when it runs
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                with suppress(ValueError):
                    value = ast.literal_eval(statement.value)
                    kinds = set(map(type, value if isinstance(value, list) else [value]))
                    if kinds <= KINDS:
                        found[statement.targets[0].id] = value
    return found


# --- running ---


class HeadlessKernelManager(AsyncKernelManager):
    """Starts kernels of this Python, with the given environment and standard error."""

    launch_options = Dict(help="arguments for every kernel's subprocess.Popen", config=True)

    @default("kernel_spec_manager")
    def kernels_of_this_python(self) -> KernelSpecManager:
        """The kernel named python3 that ipykernel brings, not one of that name in a home folder."""
        return KernelSpecManager(kernel_dirs=[])

    def start_kernel(self, **options: Any) -> Awaitable[None]:  # type: ignore[override]
        """Start the kernel with `launch_options`."""
        return super().start_kernel(**options, **self.launch_options)


def _run_all(jobs: list[Job], workers: int, log: Path, scratch: str) -> Iterator[Result]:
    """Run notebooks in threads, which only wait: each notebook's kernel is a process.

    Of several at a time the longest begin first, as one that began last would run on alone; those
    that measure under load follow one by one. One at a time they keep their order.
    """
    beside = [job for job in jobs if workers > 1 and not job.notebook.measures_load]
    beside.sort(key=lambda job: -job.notebook.seconds)
    batches = [beside, *([job] for job in jobs if job not in beside)]
    logging.getLogger("papermill").addHandler(logging.NullHandler())  # results say all of it
    with log.open("ab") as errors:
        for batch in filter(None, batches):
            at_once = min(workers, len(batch))
            with ThreadPoolExecutor(at_once) as pool:
                futures = [pool.submit(_run, job, scratch, errors, at_once) for job in batch]
                try:
                    for done in as_completed(futures):
                        yield done.result()
                except BaseException:
                    _kill_kernels(futures, scratch)
                    raise
    if not log.stat().st_size:
        log.unlink()


def _kill_kernels(futures: Iterable[Future[Result]], scratch: str) -> None:
    """Kill this run's kernels, those just being started included, until no notebook runs."""
    for future in futures:
        future.cancel()
    while wait(futures, timeout=0.1).not_done:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if scratch in " ".join(child.cmdline()):
                    child.kill()


def _run(job: Job, scratch: str, errors: BinaryIO, at_once: int) -> Result:
    """Run one notebook in this thread, clear up after it, and keep its result."""
    begun = time.perf_counter()
    error = _execute(job, tempfile.mkdtemp(dir=scratch, prefix=""), errors)
    seconds = round(time.perf_counter() - begun, 3)
    left = list(_finish(job))
    return _keep(
        job, ok=error is None, error=error, seconds=seconds, workers=at_once, left_undone=left
    )


def _execute(job: Job, place: str, errors: BinaryIO) -> CellError | None:
    """Run one notebook's cells; the error that ended them."""
    reached = CellError(0, "", "")

    def note(cell: NotebookNode, cell_index: int) -> None:
        # Counted in the notebook as it is on disk, without the cell of this run's parameters.
        nonlocal reached
        reached = CellError(cell_index + (not job.parameters), cell.source, "")

    kernel = {
        # Unix sockets in a folder of its own: two kernels that start at the same moment can pick
        # the same TCP ports (or the same default names of sockets), and then hang.
        "transport": "ipc",
        "ip": f"{place}/kernel",
        "connection_file": f"{place}/kernel.json",
        "launch_options": {
            "stderr": errors.fileno(),
            "env": _kernel_environment(job, place),
            "cwd": str(job.notebook.path.parent),
        },
    }
    try:
        if job.notebook.broken:
            return CellError(0, "", job.notebook.broken)
        with closing(ensure_event_loop()):  # this thread's; jupyter_client would leave it open
            execute_notebook(
                job.notebook.path.absolute(),
                job.file(".ipynb"),
                job.parameters,
                progress_bar=False,
                request_save_on_cell_execute=False,
                start_timeout=KERNEL_START_S,
                execution_timeout=CELL_LIMIT_S,
                kernel_manager_class=HeadlessKernelManager,
                on_cell_execute=note,
                config=Config(HeadlessKernelManager=kernel),
            )
    except PapermillExecutionError as failed:
        why = f"{failed.ename}: {failed.evalue}"
    except DeadKernelError:
        why = "Its kernel was ended from outside, perhaps because memory ran out. Run it again."
    except Exception as failed:  # noqa: BLE001 -- such as a full disk: report it
        why = f"{type(failed).__name__}: {failed}"
    else:
        return None
    return replace(reached, error=why)


def _short_folder() -> Path:
    """The folder for temporary files, or one in whose path there is room for a socket's name."""
    place = Path(tempfile.gettempdir())
    return place if len(os.fsencode(place)) <= MAX_FOLDER_BYTES else Path("/tmp")  # noqa: S108


def _kernel_environment(job: Job, place: str) -> dict[str, str]:
    """What a kernel inherits: its own namespace, and nothing personal."""
    return {
        **os.environ,
        "WORKSHOP_NAMESPACE": job.namespace,
        "WORKSHOP_RESULT_FILE": str(job.file(".json")),
        "WORKSHOP_LINGER_SECONDS": "0",
        "IPYTHONDIR": place,
        "JUPYTER_RUNTIME_DIR": place,
        "PYTHONSTARTUP": "",
        "TQDM_DISABLE": "1",
        # matplotlib's font list takes seconds to build: it is kept from run to run, here; there is
        # no personal configuration in there.
        "MPLCONFIGDIR": str(cache_folder("matplotlib")),
        "MATPLOTLIBRC": "",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def _finish(job: Job) -> Iterator[str]:
    """Delete this notebook's tables, keys and objects, and export its page. Yields what failed."""
    try:
        wipe_namespace(job.namespace)
    except Exception as error:  # noqa: BLE001 -- any client's error; it is reported, not lost
        yield f"not cleared up after it: {type(error).__name__}: {error}"
    try:
        if job.file(".ipynb").exists():
            export(job.file(".ipynb"))
    except Exception as error:  # noqa: BLE001 -- its figures are there; so are the other pages
        yield f"it has no page: {type(error).__name__}: {error}"


def _keep(job: Job, **known: Any) -> Result:
    """Add to what the notebook recorded what only the runner knows, and write it."""
    try:
        recorded = read_result(job.file(".json"))
    except WorkshopError:
        recorded = new_result(job.notebook.name)
    given = {**job.notebook.parameters, **job.parameters}
    about: dict[str, Any] = {
        "notebook": job.notebook.name,  # it may have opened the workshop under another
        "title": job.notebook.title,
        "size": job.size,
        "parameters": given,
    }
    complete = replace(recorded, **about, **known)
    write_json(job.file(".json"), complete.to_json())
    return complete


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
