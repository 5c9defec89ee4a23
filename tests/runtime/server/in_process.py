"""The server in this process, on a real socket, so that tests can break what is inside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from paddock.commands.serve import served_of
from paddock.recipes import pipeline
from paddock.recipes.compose import compose
from paddock.runtime.server.app import create_app
from paddock.runtime.server.bounded_http import BoundedHttp
from paddock.runtime.server.served_model import ServedModel
from paddock.runtime.server.serving import listen, url_of
from tests.runtime.server.serving import Asking


class InProcess(Asking):
    def __init__(self, url: str, running: pipeline.Running, served: ServedModel) -> None:
        self.url = url
        self.running = running
        self.served = served
        self.loop = running.loop
        self.session: Any = running.session


@contextmanager
def serve_in_process(*overrides: str) -> Iterator[InProcess]:
    recipe = compose("demo", overrides, []).recipe
    running = pipeline.start(recipe)
    served = served_of(running)
    assert isinstance(served, ServedModel)
    app = create_app(served, keys=[], version="test")
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", http=BoundedHttp)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield InProcess(url_of(listening), running, served)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        served.close()
        running.close()
