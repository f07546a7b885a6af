"""Kernels are forked as if they had been started, and no reply of theirs is overlooked."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
import zmq.asyncio
from jupyter_client import KernelManager
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.session import Session

from workshop_lib.errors import RunError
from workshop_lib.kernel_client import ForkedKernel, Nursery, WakefulChannel, WakefulClient


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
    """When this fails, the fault is mended upstream and `kernel_client` can go."""
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(_reply_while_sending(AsyncZMQSocketChannel, 1))


def test_the_client_uses_it_for_replies_only() -> None:
    client = WakefulClient()
    assert client.shell_channel_class is WakefulChannel
    assert client.iopub_channel_class is AsyncKernelClient().iopub_channel_class


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    log = tmp_path_factory.mktemp("nursery") / "log"
    made = Nursery({"TQDM_DISABLE": "1"}, log, get_context("spawn"))
    yield made
    made.close()


def _kernel(nursery: Nursery, folder: Path, **environment: str) -> tuple[ForkedKernel, Any]:
    """A kernel and a client that is connected to it."""
    manager = KernelManager(transport="ipc", ip=str(folder / "kernel"))
    manager.connection_file = str(folder / "kernel.json")
    manager.write_connection_file()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", manager.connection_file]
    wanted = {**os.environ, "IPYTHONDIR": str(folder), **environment}
    kernel = nursery.kernel(command, wanted, str(folder))
    # The manager did not start it, and would call it dead if it took a second to answer.
    client = manager.client(parent=None)
    client.hb_channel.time_to_dead = 30.0
    client.start_channels()
    client.wait_for_ready(30)
    return kernel, client


def _said(client: Any, code: str) -> str:
    """What code prints in a kernel."""
    found: list[str] = []
    reply = client.execute_interactive(
        code, timeout=30, output_hook=lambda m: found.append(m["content"].get("text", ""))
    )
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(found).strip()


def test_a_forked_kernel_has_its_own_environment_folder_and_randomness(nursery, tmp_path) -> None:
    code = (
        "import os, random, sys\n"
        "print(os.environ.get('MINE'), os.getcwd(), os.getpgrp() == os.getpid())\n"
        "print('pandas' in sys.modules, sys.argv[0], random.random())"
    )
    answers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        kernel, client = _kernel(nursery, tmp_path / name, MINE=name)
        answers.append(_said(client, code).split())
        assert answers[-1][:3] == [name, str(tmp_path / name), "True"]
        assert answers[-1][3:5] == ["True", "ipykernel_launcher"]
        assert kernel.poll() is None
        client.shutdown()
        assert kernel.wait() == 0
        client.stop_channels()
    assert answers[0][5] != answers[1][5]


def test_a_forked_kernel_can_be_interrupted_and_killed(nursery, tmp_path) -> None:
    kernel, client = _kernel(nursery, tmp_path)
    client.execute("import time\nprint('sleeping', flush=True)\ntime.sleep(60)")
    while client.get_iopub_msg(timeout=30)["msg_type"] != "stream":
        pass
    kernel.send_signal(signal.SIGINT)
    # A kernel that was slow to get ready may still answer what it was asked then.
    while (reply := client.get_shell_msg(timeout=30))["msg_type"] != "execute_reply":
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    kernel.send_signal(signal.SIGKILL)
    assert kernel.wait() == -signal.SIGKILL
    kernel.send_signal(signal.SIGKILL)  # it has ended: nobody else is hit
    client.stop_channels()


def _a_kernel_of_another(nursery: Nursery, folder: str, answers: Any) -> None:
    """What a new process does with a nursery that it was handed."""
    kernel = nursery.kernel(["ipykernel_launcher", "--help"], dict(os.environ), folder)
    answers.put((kernel.pid, kernel.wait()))


def test_several_processes_share_a_nursery_and_it_ends_with_the_last(tmp_path) -> None:
    context = get_context("spawn")
    log = tmp_path / "log"
    nursery = Nursery({}, log, context)
    answers = context.Queue()
    processes = [
        context.Process(target=_a_kernel_of_another, args=(nursery, str(tmp_path), answers))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [code for _, code in found] == [0, 0]
    assert len({pid for pid, _ in found}) == 2
    nursery.close()  # waits for its end
    answers.close()


def test_kernels_end_with_the_nursery_and_its_loss_is_an_error(tmp_path) -> None:
    nursery = Nursery({}, tmp_path / "log", get_context("spawn"))
    kernel, client = _kernel(nursery, tmp_path)
    process = psutil.Process(kernel.pid)
    os.kill(process.ppid(), signal.SIGKILL)
    assert psutil.wait_procs([process], timeout=10)[1] == []
    client.stop_channels()
    assert kernel.poll() is not None
    with pytest.raises(RunError, match="is gone"):
        nursery.kernel(["ipykernel_launcher"], {}, "/")
    nursery.close()
