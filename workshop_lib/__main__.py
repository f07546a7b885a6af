"""The `workshop` command, also as `python -m workshop_lib`."""

import os
import signal
import sys

if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
    os.environ["PYTHONUTF8"] = "1"  # else a folder with other letters could not be named
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 -- no shell

_hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _hears:  # Ctrl-C while the imports run ends the process, without a traceback of them
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from workshop_lib.cli import main  # noqa: E402

if _hears:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    main(prog_name="workshop")
