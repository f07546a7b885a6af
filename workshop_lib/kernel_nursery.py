"""The nursery: a process that has imported what notebooks import, and forks into their kernels.

A kernel that starts by itself spends a second and a half on imports, and so does the next one. Run
as a program by `kernel_client.Nursery`, with one message of JSON on standard input for each request
and one on the file descriptor it is given for each answer. It ends when its input does, and the
kernels end with it.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NoReturn

LAUNCHER = "ipykernel_launcher"


def main() -> None:
    """Answer requests: a kernel's number for a command line, its exit code (or null) for that."""
    requests, answers = Connection(0, writable=False), Connection(int(sys.argv[1]), readable=False)
    # What -m put at the front of the path; a kernel puts its own folder there.
    del sys.path[0]
    _import()
    while (request := _next(requests)) is not None:
        if isinstance(request, int):
            answer = _exit_code(request)
        elif not (answer := _fork()):
            answers.close()
            _be_a_kernel(request)
        answers.send_bytes(json.dumps(answer).encode())


def _next(requests: Connection) -> Any:
    """The next request; None if nobody is left who could ask."""
    try:
        return json.loads(requests.recv_bytes())
    except EOFError:
        return None


def _import() -> None:
    """Take in what notebooks use. Nothing of it may start a thread or open a connection."""
    import ipywidgets  # type: ignore[import-untyped]  # noqa: F401, PLC0415
    import pandas as pd  # noqa: F401, PLC0415
    from ipykernel import kernelapp  # noqa: F401, PLC0415

    import workshop_lib  # noqa: PLC0415

    for name in workshop_lib.__all__:
        getattr(workshop_lib, name)
    # For kernels that start worker processes. It ignores SIGTERM: were it a kernel's own child,
    # the kernel would try for seconds to end it before it ends itself.
    resource_tracker.ensure_running()


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, and numpy's OpenBLAS has some. It stops them before a fork
        # and has new ones after it.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _exit_code(pid: int) -> int | None:
    """How a kernel ended, as subprocess says it; it stays a zombie until somebody asks."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # asked, and answered, before
        return 0
    return os.waitstatus_to_exitcode(status) if ended else None


def _be_a_kernel(request: dict[str, Any]) -> NoReturn:
    """Do in this fork what the command would have done in a process of its own."""
    os.setsid()  # an Interrupt or a kill of its group is for this kernel alone
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = os.fdopen(0, closefd=False)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    command = request["command"]
    sys.argv = command[command.index(LAUNCHER) :]

    from ipykernel import kernelapp  # noqa: PLC0415

    # By its parent's number a kernel knows that it has become an orphan.
    kernelapp.launch_new_instance(parent_handle=os.getppid())
    sys.exit()


if __name__ == "__main__":
    main()
