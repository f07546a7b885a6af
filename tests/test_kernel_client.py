"""No reply of a kernel is overlooked while its widgets are answered."""

import asyncio
import tempfile
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session

from workshop_lib.kernel_client import HeadlessKernelManager, WakefulChannel


async def _reply_while_sending(kind: type[AsyncZMQSocketChannel], patience_s: float) -> str:
    """Wait on a channel; let a reply arrive, and then send before the event loop sees it."""
    session = Session(key=b"key")
    with tempfile.TemporaryDirectory() as folder, zmq.asyncio.Context() as context:
        address = f"ipc://{Path(folder) / 'shell'}"
        with zmq.Context() as blocking, blocking.socket(zmq.DEALER) as kernel:
            kernel.bind(address)
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 0  # else a message that nobody took would hold up the end for ever
                socket.connect(address)
                channel = kind(socket, session)
                channel.send(session.msg("execute_request", {}))
                kernel.recv_multipart()
                waiting = asyncio.create_task(channel.get_msg(timeout=None))
                await asyncio.sleep(0.1)
                session.send(kernel, "execute_reply", {"status": "ok"})
                _wait_until_it_arrived(socket)
                channel.send(session.msg("comm_msg", {}))
                message = await asyncio.wait_for(waiting, patience_s)
                return str(message["header"]["msg_type"])


def _wait_until_it_arrived(socket: zmq.asyncio.Socket) -> None:
    """Hold the event loop until the socket's signal is up (ZeroMQ's own thread does the work)."""
    assert zmq.select([socket.FD], [], [], 5)[0]


def test_the_reply_is_seen() -> None:
    for _ in range(5):
        assert asyncio.run(_reply_while_sending(WakefulChannel, 30)) == "execute_reply"


def test_the_plain_channel_sleeps_on() -> None:
    """When this fails, the fault is mended upstream and `WakefulChannel` can go."""
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(_reply_while_sending(AsyncZMQSocketChannel, 1))


def test_a_headless_kernel_is_listened_to_by_it() -> None:
    assert HeadlessKernelManager().client().shell_channel_class is WakefulChannel
