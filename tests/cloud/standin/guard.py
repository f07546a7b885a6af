"""Stop an engine if its stand-in dies without a word: the guard waits on a pipe from it.

Run as a program by the stand-in. Lines "+PID" and "-PID" arrive on standard input; when the pipe
closes, whatever is still on the list is stopped. Standard library only, so that it stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time


def main() -> None:
    """Keep the list until the pipe closes, then stop what is on it."""
    engines: set[int] = set()
    for line in sys.stdin:
        sign, pid = line[0], int(line[1:])
        (engines.add if sign == "+" else engines.discard)(pid)
    # SIGINT is PostgreSQL's fast shutdown; Valkey and the store end on it as well.
    for number in (signal.SIGINT, signal.SIGKILL):
        for pid in engines:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        for _ in range(50):
            engines = {pid for pid in engines if _alive(pid)}
            if not engines:
                return
            time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
