"""Running the application: sockets, signals, shutting down."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from paddock.graph.errors import PaddockError
from paddock.runtime.server import logs
from paddock.runtime.server.bounded_http import BoundedHttp
from paddock.runtime.server.health import health_of
from paddock.runtime.server.served import Served

logger = logging.getLogger(__name__)

WATCH_S = 1.0
BACKLOG = 2048
ENGINE_GONE = 1


class ListenError(PaddockError):
    """The address cannot be listened at."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `ListenError`; before anything is built, so it is known early."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ListenError(f"server.host: {host}: {error.strerror or error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise ListenError(
            f"cannot listen at {host}:{port}: {error.strerror or error}; another port is"
            " server.port=, and 0 any that is free"
        ) from None
    return listening


def url_of(listening: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: ASGIApp, served: Served, listening: socket.socket, *, on_ready: Callable[[], None]
) -> int:
    """Serve until SIGTERM or SIGINT, or until the engine stops; the exit code.

    On a signal nothing new is taken, what runs may take `drain_s` to finish, and then it is
    cancelled. A second signal cancels at once. The loop is closed afterwards by its owner.
    """
    settings = served.settings
    logs.set_up(settings.log_format)
    _allow_open_files(settings.max_connections + 256)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(settings.drain_s) + 1,
        timeout_keep_alive=75,
        http=BoundedHttp,
        limit_concurrency=settings.max_connections,
        lifespan="off",
    )
    server = _Server(config, served, on_ready)
    server.run(sockets=[listening])
    return ENGINE_GONE if server.engine_gone else 0


def _allow_open_files(count: int) -> None:
    """A connection is an open file, and the usual bound is as few as connections may be."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Server(uvicorn.Server):
    """uvicorn's, which ends with exit code 0 on SIGTERM, and when the engine has gone."""

    def __init__(
        self, config: uvicorn.Config, served: Served, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._served = served
        self._on_ready = on_ready
        self.engine_gone = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without raising them again afterwards, which would kill the process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        self._served.draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._watch = asyncio.create_task(self._watch_engine())
        # What was made so far stays. Looking through it for garbage held all threads up for a tenth
        # of a second now and then, the engine's too.
        gc.freeze()
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("shutting down: what runs may take %g s", self._served.settings.drain_s)
        self._watch.cancel()
        ending = asyncio.get_running_loop().call_later(
            self._served.settings.drain_s, self._served.cancel_all
        )
        await super().shutdown(sockets)
        ending.cancel()

    async def _watch_engine(self) -> None:
        """The watchdog: says when the engine stalls, and ends the server when it is gone."""
        was = "ok"
        while True:
            await asyncio.sleep(WATCH_S)
            health = health_of(self._served.watched, self._served.settings.stall_s)
            if health.status != was:
                was = health.status
                log = logger.info if was == "ok" else logger.error
                log("health: %s: %s", health.status, health.message)
            if health.status == "stopped" and not self.should_exit:
                self.engine_gone = True
                self._served.draining = True
                self.should_exit = True
