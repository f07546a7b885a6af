"""What the supervisor and its clients say to each other: lines of JSON over a local connection."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any, NamedTuple

HOST = "127.0.0.1"
MAX_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the supervisor says of one engine.

    Attributes:
        status: "up", "down" (not asked for, or about to come) or "failed".
        port: where it is, or will be again; 0 if it is not asked for.
        pid: of the running server, else 0.
        emulated: an emulation stands in for the real server.
        message: why it failed.

    """

    name: str
    status: str
    port: int = 0
    pid: int = 0
    emulated: bool = False
    message: str = ""


class User(NamedTuple):
    """A process that uses engines."""

    pid: int
    command: str

    def __str__(self) -> str:
        """As `workshop status` shows it."""
        return f"{self.command} (pid {self.pid})"


def send(connection: socket.socket, message: object) -> None:
    """Send one line."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def receive(connection: socket.socket) -> Any:
    """Wait for one line; no side sends a second one before it has been answered.

    Raises:
        OSError: the other side is gone, or silent for longer than the connection's timeout.
        ValueError: it is not JSON, or too long.

    """
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(65_536)
        if not part:
            raise ConnectionResetError("the other side has closed the connection")
        line += part
        if len(line) > MAX_LINE:
            raise ValueError("the line is too long")
    return json.loads(line)
