"""What the `workshop` command's options have in common."""

import signal
from pathlib import Path

import click

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command that Ctrl-C ended."""

a_file = click.Path(dir_okay=False, path_type=Path)
a_folder = click.Path(file_okay=False, path_type=Path)
as_json = click.option("--json", "as_json", is_flag=True, help="machine-readable")
yes = click.option("--yes", is_flag=True, help="do not ask")
