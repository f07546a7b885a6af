"""Set how far away a local engine seems to be, through a proxy that ends with this process."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

from workshop_lib import forks
from workshop_lib.errors import EngineError, WorkshopError
from workshop_lib.services import distance
from workshop_lib.services.distance import HOST
from workshop_lib.services.endpoints import Endpoint

MOST_S = 0.4
"""Farther, and connecting would take longer than the clients wait. Round the globe it is 0.3."""
ANSWER_S = 10.0
END_S = 3.0


class Dial:
    """The distance between this process and one service. Nothing runs before it is first turned.

    Args:
        service: what the learner calls it, for messages.
        endpoint: where it is.
        reroute: told the host and port by which clients should connect from now on.

    Attributes:
        seconds: the round-trip time that is added, 0 for none.

    """

    def __init__(
        self, service: str, endpoint: Endpoint, reroute: Callable[[str, int], object]
    ) -> None:
        self.service = service
        self.endpoint = endpoint
        self.seconds = 0.0
        self._reroute = reroute
        self._place = self._direct = (endpoint.host, endpoint.port)
        self._proxy: _Proxy | None = None
        self._lock = threading.Lock()
        self._inherited = False
        forks.tell_child(self)

    def _after_fork(self) -> None:
        """In a forked process: stay as far away as the parent is, and leave its proxy to it."""
        self._inherited, self._lock = True, threading.Lock()
        if self._proxy:
            self._proxy.leave()

    def check(self, seconds: float) -> float:
        """Whether the dial can be set to this.

        Returns:
            The round-trip time, seconds.

        Raises:
            ValueError: it is out of range.
            WorkshopError: the service is not a local engine, or this process was forked.

        """
        try:
            wanted = float(seconds)
        except (TypeError, ValueError):
            wanted = -1.0
        if not 0 <= wanted <= MOST_S:
            raise ValueError(
                f"The distance of the {self.service} is {seconds!r}; it is a round-trip time of 0 "
                f"to {MOST_S:g} seconds: 0.005 for 5 ms."
            )
        if wanted and not self.endpoint.embedded:
            raise WorkshopError(
                f"Distance can be added to the local engines only, and the {self.service} is "
                f"{self.endpoint.label}, which has a distance of its own. Set it to 0."
            )
        if self._inherited and wanted != self.seconds:
            raise WorkshopError(
                f"This process was forked since the workshop was opened: it is as far from the "
                f"{self.service} as its parent. Set the distance there, or open a workshop here."
            )
        return wanted

    def set(self, seconds: float) -> None:
        """Set the round-trip time; it is in force when this returns.

        Raises:
            EngineError: the proxy did not start, or does not answer: then there is none any more.
            ValueError, WorkshopError: as `check`.

        """
        wanted = self.check(seconds)
        if self._inherited:
            return
        with self._lock:
            if self._proxy and not self._proxy.alive:
                self._go_direct()
            try:
                if self._proxy:
                    # Also to 0: connections in use stay with it until their users are done.
                    self._proxy.tell(wanted)
                elif wanted:
                    self._proxy = _Proxy(self.endpoint, wanted)
            except EngineError:
                self._go_direct()
                raise
            self.seconds = wanted
            self._go_by((HOST, self._proxy.port) if wanted and self._proxy else self._direct)

    def close(self) -> None:
        """Connect directly again and end the proxy. Doing it twice is harmless."""
        if self._inherited:
            return
        with self._lock:
            self._go_direct()

    def _go_direct(self) -> None:
        self.seconds = 0.0
        self._go_by(self._direct)
        if self._proxy:
            self._proxy.close()
            self._proxy = None

    def _go_by(self, place: tuple[str, int]) -> None:
        if place != self._place:
            self._place = place
            self._reroute(*place)


class _Proxy:
    """A running proxy. It ends when its standard input closes: when this process dies, as well."""

    def __init__(self, endpoint: Endpoint, seconds: float) -> None:
        place = [endpoint.host, str(endpoint.port), repr(seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(distance.__file__), *place],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Jupyter's Interrupt goes to the whole process group: the proxy has its own.
            start_new_session=True,
            cwd="/",
        )
        try:
            self.port = int(self._answer())
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def tell(self, seconds: float) -> None:
        """Change the round-trip time.

        Raises:
            EngineError: the proxy did not answer.

        """
        said = repr(seconds).encode()
        with contextlib.suppress(BrokenPipeError):  # it has just died: no answer will come
            _pipe(self._process.stdin).write(said + b"\n")
        # Answers to questions that were interrupted may come first.
        while self._answer() != said:
            pass

    def leave(self) -> None:
        """Close our ends of its pipes, in a forked process: it ends when the parent closes its."""
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()

    def close(self) -> None:
        """End it."""
        _pipe(self._process.stdin).close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # it was halted, for example
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()

    def _answer(self) -> bytes:
        said = _pipe(self._process.stdout)
        line = said.readline() if select.select([said], [], [], ANSWER_S)[0] else b""
        if not line:
            raise EngineError(
                "The proxy that adds distance did not start, or has ended. Run the cell that sets "
                "the distance again."
            )
        return line.strip()


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None  # noqa: S101 -- asked for when the process was started
    return end
