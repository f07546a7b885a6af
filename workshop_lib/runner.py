"""Run notebooks headless through papermill, each in a namespace of its own, and keep results."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_event_loop
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill import PapermillExecutionError, execute_notebook

from workshop_lib.errors import RunError, WorkshopError
from workshop_lib.namespaces import abandoned_namespaces, new_run, wipe_namespace
from workshop_lib.notebooks import Notebook, choose, find_notebooks, parse_parameters
from workshop_lib.paths import NOTEBOOKS, RESULTS, cache_folder, display_path
from workshop_lib.report import export, write_report
from workshop_lib.results import (
    CellError,
    Result,
    new_result,
    read_result,
    ready_folder,
    write_json,
)
from workshop_lib.services import session
from workshop_lib.services.endpoints import is_on_aws
from workshop_lib.settings import load_settings

CELL_LIMIT_S = 600
KERNEL_START_S = 90
MAX_FOLDER_BYTES = 50
"""Of the path that temporary files are in, for kernels' sockets to be made there: the name of a
Unix socket has 103 bytes at most on macOS, 107 on Linux."""
SCRATCH = f"workshop-{os.getuid()}-"


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
        return self.out / f"{self.notebook.name}{ending}"


def run(
    names: Iterable[str] = (),
    *,
    size: str = "quick",
    parameters: Iterable[str] = (),
    workers: int | None = None,
    out: Path | None = None,
    notebooks: Path = NOTEBOOKS,
    say: Callable[[str], object] = print,
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

    Returns:
        The results in the notebooks' order, and the page over them, which is written also where
        the run is interrupted.

    Raises:
        WorkshopError: the request cannot be carried out.

    """
    settings = load_settings().values
    chosen = choose(names, find_notebooks(notebooks))
    values = parse_parameters(parameters, chosen, size)
    unique = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    folder = ready_folder(out or RESULTS / unique)
    if folder == notebooks.resolve():
        raise RunError(f"{display_path(folder)} has the notebooks in it: choose another --out.")
    stamp = new_run()
    jobs = [
        Job(one, size, values[one.name], folder, f"{stamp}_{n}") for n, one in enumerate(chosen)
    ]
    if workers is None:
        # On Aurora DSQL one notebook's DDL ends the open transactions of all others.
        beside = size == "quick" and not is_on_aws(settings) and (os.cpu_count() or 1) > 1
        workers = 2 if beside else 1
    count = f"{len(jobs)} notebook{'s' * (len(jobs) != 1)}, {size} size"
    say(f"{count}, {min(workers, len(jobs))} at a time, into {display_path(folder)}")
    done: dict[str, Result] = {}
    prefix = f"{SCRATCH}{os.getpid()}-"  # says of which process it is
    scratch = tempfile.TemporaryDirectory(prefix=prefix, dir=_temporary_folder())
    log = folder / "kernels.log"
    with scratch, session(settings), log.open("ab") as errors:
        sweep()
        for job in jobs:  # what an earlier run left there is not this one's
            for ending in (".json", ".ipynb", ".html"):
                job.file(ending).unlink(missing_ok=True)
        try:
            for result in _run_all(jobs, workers, errors, scratch.name):
                done[result.notebook] = result
                say(describe(result))
        except KeyboardInterrupt:
            why = CellError(0, "", "The run was interrupted before this had finished.")
            for job in jobs:
                if job.notebook.name not in done:
                    _keep(job, why, interrupted=True, workers=workers)
            raise
        finally:
            if not log.stat().st_size:
                log.unlink()
            page = write_report(folder)
    if folder.parent == RESULTS:
        _point_latest_to(folder)
    return [done[job.notebook.name] for job in jobs], page


def sweep() -> int:
    """Delete what killed runs left: temporary files, and in the database, the cache and the store.

    A run that is under way keeps its own: `abandoned_namespaces`.

    Returns:
        How many namespaces were cleared.

    """
    for folder in _temporary_folder().glob(f"{SCRATCH}*-*"):
        if not psutil.pid_exists(int(folder.name.split("-")[2])):
            shutil.rmtree(folder, ignore_errors=True)
    found = abandoned_namespaces()
    wipe_namespace(*found)
    return len(found)


def _temporary_folder() -> Path:
    """The folder for temporary files, or one in whose path there is room for a socket's name."""
    place = Path(tempfile.gettempdir())
    return place if len(os.fsencode(place)) <= MAX_FOLDER_BYTES else Path("/tmp")  # noqa: S108


def describe(result: Result) -> str:
    """One line for a success; for a failure also the cell, its code and its error."""
    lines = [f"{'✓' if result.ok else '✗'} {result.notebook:<28} {result.seconds:6.1f} s"]
    if error := result.error:
        where = f"cell {error.cell}: " if error.cell else ""
        lines.append(f"  {where}{error.error}")
        lines += [f"    | {row}" for row in error.source.splitlines()]
    return "\n".join([*lines, *(f"  {why}" for why in result.left_undone)])


def _run_all(jobs: list[Job], workers: int, errors: BinaryIO, scratch: str) -> Iterator[Result]:
    """Run notebooks in threads, which only wait: each notebook's kernel is a process.

    Of several at a time the longest begin first, as one that began last would run on alone; those
    that measure under load follow one by one. One at a time they keep their order.
    """
    beside = [job for job in jobs if workers > 1 and not job.notebook.measures_load]
    alone = [[job] for job in jobs if job not in beside]
    beside.sort(key=lambda job: -job.notebook.seconds)
    logging.getLogger("papermill").addHandler(logging.NullHandler())  # results say all of it
    for batch in (beside, *alone):
        at_once = min(workers, len(batch))
        with ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(_run, job, scratch, errors, at_once) for job in batch]
            try:
                for finished in as_completed(futures):
                    yield finished.result()
            except BaseException:
                _kill_kernels(futures, scratch)
                raise


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
    return _keep(job, error, seconds=seconds, workers=at_once, left_undone=left)


def _execute(job: Job, place: str, errors: BinaryIO) -> CellError | None:
    """Run one notebook's cells; the error that ended them."""
    reached = CellError(0, "", job.notebook.broken)
    if job.notebook.broken:
        return reached

    def note(cell: NotebookNode, cell_index: int) -> None:
        # Counted in the notebook as it is on disk, without the cell of this run's parameters.
        nonlocal reached
        reached = CellError(cell_index + (not job.parameters), cell.source, "")

    try:
        # Closes this thread's loop, and cancels what still waits in it: jupyter_client would not.
        with asyncio.Runner(loop_factory=ensure_event_loop):
            execute_notebook(
                job.notebook.path.absolute(),
                job.file(".ipynb"),
                job.parameters,
                progress_bar=False,
                request_save_on_cell_execute=False,
                start_timeout=KERNEL_START_S,
                execution_timeout=CELL_LIMIT_S,
                kernel_manager_class=_kernel_of(job, place, errors),
                on_cell_execute=note,
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


def _kernel_of(job: Job, place: str, errors: BinaryIO) -> type[AsyncKernelManager]:
    """How the kernel of one notebook is started, and ended."""

    class Kernel(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            # The kernel named python3 that ipykernel brings, not one of that name in a home folder.
            ours = KernelSpecManager(kernel_dirs=[])
            # Unix sockets, beside this file: two kernels that start at the same moment can pick the
            # same TCP ports, and then hang.
            file = f"{place}/kernel.json"
            super().__init__(
                **options, kernel_spec_manager=ours, transport="ipc", connection_file=file
            )

        def start_kernel(self, **options: Any) -> Awaitable[None]:  # type: ignore[override]
            environment, folder = _environment(job, place), job.notebook.path.parent
            return super().start_kernel(**options, env=environment, cwd=folder, stderr=errors)

        async def shutdown_kernel(self, **_: Any) -> None:  # type: ignore[override]
            # Without the interrupt that would come first: it reaches every process that the
            # notebook has started, and each would write a traceback.
            await self.request_shutdown()
            await self.finish_shutdown()

    return Kernel


def _environment(job: Job, place: str) -> dict[str, str]:
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


def _keep(job: Job, error: CellError | None, **known: Any) -> Result:
    """Add to what the notebook recorded what only the runner knows, and write it."""
    try:
        recorded = read_result(job.file(".json"))
    except WorkshopError:
        recorded = new_result(job.notebook.name)
    result = replace(
        recorded,
        notebook=job.notebook.name,  # it may have opened the workshop under another
        title=job.notebook.title,
        size=job.size,
        parameters={**job.notebook.parameters, **job.parameters},
        ok=error is None,
        error=error,
        **known,
    )
    write_json(job.file(".json"), result.to_json())
    return result


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
