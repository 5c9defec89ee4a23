"""A real `paddock serve` process, and what tests ask of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import openai


class Asking:
    """A server's address, and how tests ask it."""

    url: str

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        """The official client, which does not try again by itself."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, **({"max_retries": 0} | options)
        )

    def ask(
        self,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        method: str | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers (names in lower case) and body, parsed where it is JSON."""
        data = json.dumps(body).encode() if isinstance(body, Mapping) else body
        request = urllib.request.Request(
            self.url + path,
            data=data,
            headers={"Content-Type": "application/json", **(headers or {})},
            method=method,
        )
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            text = answer.read()
            found = {name.lower(): value for name, value in answer.headers.items()}
            if found.get("content-type", "").startswith("application/json"):
                return answer.status, found, json.loads(text)
            return answer.status, found, text.decode()

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("/stats")[2]
        return found

    def wait_until(self, **expected: Any) -> None:
        """Until `/stats` says so; ten seconds at most."""
        end = time.monotonic() + 10
        while any((found := self.stats())[name] != value for name, value in expected.items()):
            assert time.monotonic() < end, found
            time.sleep(0.01)


class Serving(Asking):
    """Started on any free port; as a context manager it ends with SIGTERM, and exit code 0."""

    def __init__(self, environment: Mapping[str, str], folder: Path, *arguments: str) -> None:
        self._log = (folder / f"serve-{time.monotonic_ns()}.log").open("w+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paddock", "serve", "server.port=0", "--json", *arguments],
            env=dict(environment),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log
        self.told: dict[str, Any] = json.loads(line)
        self.url = self.told["url"]

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    def stop(self, timeout_s: float = 60) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not end\n{self.log}") from None
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = self.stop()
        assert kind is not None or status == 0, self.log
