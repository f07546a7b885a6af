"""A server of asyncio in a thread of its own."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable


class InThread:
    """Serves a new port of this machine, `port`, until it is closed."""

    def __init__(self, serve: Callable[[socket.socket], Awaitable[object]]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._serve, self._begun = serve, threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),))
        self._thread.start()
        self._begun.wait()

    async def _run(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        serving = asyncio.ensure_future(self._serve(self._listener))
        self._begun.set()
        await self._ended.wait()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._listener.close()
