"""End the engines if their supervisor is killed: wait for a pipe from it to close.

Run by the supervisor as a program: `python -m workshop_lib.services.watchdog STATE_FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from workshop_lib.services.processes import end_processes
from workshop_lib.services.state_folder import StateFolder


def main() -> None:
    """Wait for the supervisor's end, however it comes, and clear up what it has left."""
    folder = StateFolder(Path(sys.argv[1]))
    sys.stdin.read()
    end_processes(folder.processes().engines)
    folder.delete_sandboxes()


if __name__ == "__main__":
    main()
