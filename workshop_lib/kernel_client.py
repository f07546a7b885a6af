"""How a headless run starts kernels, and listens to them without sleeping through a reply."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Type

from workshop_lib.errors import RunError
from workshop_lib.paths import CHECKOUT

POLL_S = 0.02
LOST = -9
"""The exit code of a kernel whose nursery is gone: it ends within a second of that."""


class WakefulChannel(AsyncZMQSocketChannel):
    """A channel that looks for answers again after each message that it sends.

    nbclient waits for a cell's reply on this channel, and meanwhile answers the kernel's widgets on
    it. Sending takes note of a reply that has just arrived and tells nobody: ZeroMQ signals each
    arrival once. The cell then stands still until its time limit (nbclient's issue 312). Asking for
    the socket's events after sending wakes whoever waits.
    """

    def send(self, msg: dict[str, Any]) -> None:
        """Pass on a message, and wake whoever waits for an answer that came meanwhile."""
        super().send(msg)
        self.socket.get(zmq.EVENTS)


class WakefulClient(AsyncKernelClient):
    """A kernel client whose shell channel is a `WakefulChannel`."""

    shell_channel_class = Type(WakefulChannel)


class Nursery:
    """A process that is ready to become kernels at once; see `kernel_nursery`.

    It can be handed to new processes, which then ask the same one. It ends when all are closed.

    Args:
        environment: what it imports with: settings that libraries read only then.
        log: a file, for what it and its kernels write to standard error.
        context: by which the processes are started that it will be handed to.

    """

    def __init__(self, environment: Mapping[str, str], log: Path, context: SpawnContext) -> None:
        questions, self._questions = context.Pipe(duplex=False)
        self._answers, answers = context.Pipe(duplex=False)
        self._one_at_a_time = context.Lock()
        with questions, answers, log.open("a") as stream:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [sys.executable, "-m", "workshop_lib.kernel_nursery", str(answers.fileno())],
                stdin=questions.fileno(),
                stderr=stream,
                env={**os.environ, **environment},
                pass_fds=[answers.fileno()],
                start_new_session=True,  # Ctrl-C is for who started it; it ends with them
                cwd=CHECKOUT,
            )

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: the pipes. Whoever started it waits for its end."""
        return {**self.__dict__, "_process": None}

    def kernel(self, command: list[str], environment: dict[str, str], folder: str) -> ForkedKernel:
        """A new kernel, as this command would have started it.

        Raises:
            RunError: the nursery is gone.

        """
        pid = self.ask({"command": command, "environment": environment, "folder": folder})
        if pid is None:
            raise RunError("The process that notebooks' kernels are forked from is gone.")
        return ForkedKernel(pid, self)

    def ask(self, request: Any, otherwise: int | None = None) -> int | None:
        """Its answer to a request; `otherwise` if it is gone."""
        try:
            with self._one_at_a_time:
                self._questions.send_bytes(json.dumps(request).encode())
                answer: int | None = json.loads(self._answers.recv_bytes())
        except (OSError, EOFError):
            return otherwise
        return answer

    def close(self) -> None:
        """Let it end. Kernels that still run end after it."""
        self._questions.close()
        self._answers.close()
        if self._process:
            self._process.wait()


class ForkedKernel:
    """What jupyter_client asks of a subprocess.Popen, for a kernel that is a grandchild."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, nursery: Nursery) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._nursery = nursery

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask(self.pid, LOST)
        return self.returncode

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self.poll()) is None:
            time.sleep(POLL_S)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended: then its number may be a stranger's."""
        if self.poll() is None:
            os.kill(self.pid, number)


class _Provisioner(LocalProvisioner):
    """Takes kernels from the nursery."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """As the base class, without a program of its own."""
        manager: Any = self.parent
        self.process = manager.nursery.kernel(cmd, kwargs["env"], str(Path.cwd()))
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class NurseryManager(AsyncKernelManager):
    """Starts kernels by forking the process in `nursery`, which has to be set before."""

    nursery: Nursery | None = None

    async def _async_pre_start_kernel(self, **kwargs: Any) -> tuple[list[str], dict[str, Any]]:
        if self.provisioner is None:
            self.kernel_id = self.kernel_id or "forked"
            self.provisioner = _Provisioner(
                kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
            )
        return await super()._async_pre_start_kernel(**kwargs)
