"""Execution environments of a Lambda function: processes in which its handler is called."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

PROGRAM = """
import sitecustomize
import importlib, json, sys, time
from types import SimpleNamespace
module, name = sys.argv[1].rsplit(".", 1)
handler = getattr(importlib.import_module(module), name)
for line in sys.stdin:
    end = time.monotonic() + float(sys.argv[2])
    left = SimpleNamespace(get_remaining_time_in_millis=lambda: (end - time.monotonic()) * 1e3)
    try:
        answer = {"answer": handler(json.loads(line), left)}
    except Exception as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Environments:
    """Calls a handler, each time in a process that has nothing else to do: a new one if need be.

    Args:
        handler: its name, as the function's configuration has it.
        timeout_s: the function's time-out, seconds.
        variables: its environment variables.
        paths: what it imports from, and nothing else that is installed here.

    """

    def __init__(
        self, handler: str, timeout_s: float, variables: Mapping[str, str], paths: Iterable[Path]
    ) -> None:
        own = {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512", "AWS_REGION": "us-east-1"}
        self._start = partial(
            subprocess.Popen,
            [sys.executable, "-s", "-S", "-c", PROGRAM, handler, str(timeout_s)],
            env={"PYTHONPATH": ":".join(map(str, paths)), **own, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processes: list[Any] = []
        self._free: list[Any] = []

    def __call__(self, event: Any) -> Any:
        try:
            process = self._free.pop()
        except IndexError:
            self.processes.append(process := self._start())
        process.stdin.write(json.dumps(event) + "\n")
        process.stdin.flush()
        said = json.loads(process.stdout.readline())
        self._free.append(process)
        if "error" in said:
            raise RuntimeError(said["error"])
        return said["answer"]

    def close(self) -> None:
        for process in self.processes:
            process.communicate()
