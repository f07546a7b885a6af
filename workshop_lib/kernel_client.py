"""A kernel client that does not sleep through a reply. For headless runs only."""

from typing import Any

import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from traitlets import Type


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
