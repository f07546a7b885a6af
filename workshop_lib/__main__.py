"""The `workshop` command, also as `python -m workshop_lib`."""

import signal

_hears = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _hears:  # Ctrl-C while the imports run ends the process, without a traceback of them
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from workshop_lib.cli import main  # noqa: E402

if _hears:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if __name__ == "__main__":
    main(prog_name="workshop")
