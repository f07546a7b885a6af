"""The `workshop` command, also as `python -m workshop_lib`."""

import os
import signal
import sys
from io import TextIOWrapper

# Ctrl-C while the imports run ends the process, without a traceback of them.
_before = signal.signal(signal.SIGINT, signal.SIG_DFL)

if sys.stdin is None:  # closed; what asks then gets no answer, as from any empty input
    sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115 -- needed until the process ends

from workshop_lib.cli import main  # noqa: E402

for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="replace")  # not every terminal has a ✓

signal.signal(signal.SIGINT, _before)

if __name__ == "__main__":
    main(prog_name="workshop")
