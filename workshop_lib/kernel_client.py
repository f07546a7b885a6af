"""Kernels of headless runs: nothing personal in their surroundings, and no reply overlooked."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import Dict, Type, default


class WakefulChannel(AsyncZMQSocketChannel):
    """A channel that looks for replies again after each message that it sends.

    nbclient waits for a cell's reply on this channel, and meanwhile answers the kernel's widgets on
    it. ZeroMQ signals each arrival once, and sending consumes the signal of a reply that has just
    come: the cell then stands still until its time limit (nbclient's issue 312).
    """

    def send(self, msg: dict[str, Any]) -> None:
        """Send a message, and wake the task that waits for a reply that came meanwhile."""
        super().send(msg)
        self.socket.get(zmq.EVENTS)


class WakefulClient(AsyncKernelClient):
    """A kernel client whose shell channel is a `WakefulChannel`."""

    shell_channel_class = Type(WakefulChannel)


class HeadlessKernelManager(AsyncKernelManager):
    """Starts kernels of this Python, with the given environment and standard error."""

    client_factory = Type(WakefulClient)
    launch_options = Dict(help="arguments for every kernel's subprocess.Popen", config=True)

    @default("kernel_spec_manager")
    def kernels_of_this_python(self) -> KernelSpecManager:
        """The kernel named python3 that ipykernel brings, not one of that name in a home folder."""
        return KernelSpecManager(kernel_dirs=[])

    def start_kernel(self, **options: Any) -> Awaitable[None]:  # type: ignore[override]
        """Start the kernel with `launch_options`."""
        return super().start_kernel(**options, **self.launch_options)
