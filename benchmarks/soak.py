"""Mixed load on a real `paddock serve` for minutes: nothing is lost, mixed up, leaked or left.

    python benchmarks/soak.py [--seconds 600] [--workers 16] [--json FILE] [OVERRIDE ...]

Needs the `openai` client. Long and short requests, streams and whole answers, several
continuations, shared prefixes, structured output, clients that leave at any moment, malformed and
oversized bodies, and readers that are slow come together, with a small cache and queue, so that
requests are preempted and refused too. Every answer is compared with what the same model said
offline beforehand, by the same engine: OVERRIDES like engine=cuda are for both. At the end nothing
may run, wait or hold a block, and the process's memory, and what it has of a GPU, have to be flat:
the median in the last quarter is compared with that of the second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import openai
import psutil

from paddock import LLM, SamplingParams
from paddock.runtime.sampling.structured_outputs import StructuredOutputs

OVERRIDES = (
    "limits.max_sequences=8",
    "limits.max_queued_requests=4",
    "limits.cache_gib=0.012",
    "server.max_body_mib=0.25",
    "server.write_timeout_s=2.0",
    "server.log_requests=false",
)
PREFIX = "You are a careful helper who knows every command of a Debian system. " * 6
GROWTH_ALLOWED = 1.05


@dataclass(frozen=True)
class Case:
    """A request whose answer is known."""

    prompt: str
    settings: dict[str, Any]
    expected: tuple[str, ...]


@dataclass
class Tally:
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    gpu_memory: list[int] = field(default_factory=list)  # of the server alone; empty without a GPU


def cases(overrides: list[str]) -> list[Case]:
    """Requests with the answers that the model gives to them offline."""
    asked: list[tuple[str, dict[str, Any]]] = []
    subjects = ["the ls command", "a package", "a symbolic link", "the kernel", "a shell", "a user"]
    for number, subject in enumerate(subjects):
        asked += [
            (f"Tell me about {subject}", {"max_tokens": 4}),
            (f"Tell me about {subject}", {"max_tokens": 60, "seed": number, "temperature": 0.9}),
            (f"{PREFIX}What is {subject}?", {"max_tokens": 24}),
            (
                f"{PREFIX}What is {subject}?",
                {"max_tokens": 12, "n": 3, "seed": 5, "temperature": 1.0},
            ),
            (f"A long story of {subject}:", {"max_tokens": 400, "ignore_eos": True}),
            (f"{subject} " * 60, {"max_tokens": 8, "stop": ["\n\n"]}),
            (
                f"{subject} as JSON: ",
                {"max_tokens": 200, "seed": number, "temperature": 1.0, "structure": True},
            ),
        ]
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 10},
            "size": {"type": "integer", "maximum": 999, "minimum": 0},
        },
        "required": ["name", "size"],
        "additionalProperties": False,
    }
    found = []
    with LLM("demo", "limits.max_sequences=4", *overrides) as llm:
        for prompt, settings in asked:
            structured = settings.pop("structure", False)
            params = SamplingParams(
                **settings,
                structured_outputs=StructuredOutputs(json=schema) if structured else None,
            )
            answer = llm.generate(prompt, params)[0]
            if structured:
                settings["structured_outputs"] = {"json": schema}
            found.append(Case(prompt, settings, tuple(s.text for s in answer.sequences)))
    return found


class Soak:
    def __init__(self, url: str, known: list[Case], seconds: float, seed: int) -> None:
        self.url = url
        self.tally = Tally()
        self._cases = known
        self._end = time.monotonic() + seconds
        self._random = random.Random(seed)
        self._kinds: list[Callable[[Case], Coroutine[Any, Any, None]]] = []
        self._client = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120
        )

    async def run(self, workers: int, pid: int) -> None:
        watching = asyncio.create_task(self._watch(psutil.Process(pid)))
        await asyncio.gather(*(self._worker() for _ in range(workers)))
        watching.cancel()
        await self._client.close()

    async def _watch(self, process: psutil.Process) -> None:
        for reading in count():
            self.tally.memory.append(process.memory_info().rss)
            if reading % 10 == 0:
                self.tally.gpu_memory += await gpu_bytes(process.pid)
            await asyncio.sleep(0.5)

    def _next_kind(self) -> Callable[[Case], Coroutine[Any, Any, None]]:
        """In any order, yet each comes as often as it should: a short soak has them all."""
        if not self._kinds:
            self._kinds += [self._whole, self._streamed] * 6
            self._kinds += [self._leaves] * 3
            self._kinds += [self._leaves_unread, self._malformed] * 2
            self._kinds += [self._oversized, self._slow_reader]
            self._random.shuffle(self._kinds)
        return self._kinds.pop()

    async def _worker(self) -> None:
        while time.monotonic() < self._end:
            kind = self._next_kind()
            try:
                await kind(self._random.choice(self._cases))
                self.tally.done[kind.__name__.strip("_")] += 1
            except openai.RateLimitError:
                self.tally.done["refused with 429"] += 1
                await asyncio.sleep(0.2)
            except Exception as error:
                self.tally.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    def _asked(self, case: Case) -> dict[str, Any]:
        body = {"temperature": 0.0, **case.settings}
        ours = ("ignore_eos", "structured_outputs")
        extra = {name: body.pop(name) for name in ours if name in body}
        return {"model": "demo", "prompt": case.prompt, "extra_body": extra, **body}

    def _compare(self, case: Case, texts: tuple[str, ...]) -> None:
        if texts != case.expected:
            self.tally.wrong.append(f"{case.prompt[:40]!r}: {texts} is not {case.expected}")

    async def _whole(self, case: Case) -> None:
        answer = await self._client.completions.create(**self._asked(case))
        self._compare(case, tuple(choice.text for choice in answer.choices))

    async def _streamed(self, case: Case) -> None:
        texts = [""] * len(case.expected)
        stream = await self._client.completions.create(**self._asked(case), stream=True)
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        self._compare(case, tuple(texts))

    async def _leaves(self, case: Case) -> None:
        """After some pieces, or before the first."""
        stream = await self._client.completions.create(**self._asked(case), stream=True)
        pieces = self._random.randint(0, 10)
        async for _ in stream:
            pieces -= 1
            if pieces < 0:
                break
        await stream.close()

    async def _leaves_unread(self, case: Case) -> None:
        """At any moment after the request was sent, or half of it."""
        body = json.dumps({"model": "demo", "prompt": case.prompt, "max_tokens": 500}).encode()
        data = self._head(len(body)) + body
        if self._random.random() < 0.5:
            data = data[: self._random.randrange(len(data))]
        _, writer = await self._connect()
        writer.write(data)
        await asyncio.sleep(self._random.random() * 0.2)
        writer.close()

    async def _malformed(self, case: Case) -> None:
        body = self._random.choice(
            [
                b"{",
                b"[" * 5000,
                b'{"model": "demo"}',
                b'{"model": "demo", "prompt": "\\ud800"}',
                b'{"model": "demo", "prompt": "A", "n": 1e9}',
                b'{"model": "demo", "prompt": "A", "structured_outputs": {"regex": "("}}',
                b"\xff" * 100,
            ]
        )
        await self._expect(self._head(len(body)) + body, b"400")

    async def _oversized(self, case: Case) -> None:
        if self._random.random() < 0.5:
            await self._expect(self._head(10_000_000) + b"x" * 1000, b"413")
        else:
            body = json.dumps({"model": "demo", "prompt": "file " * 5000}).encode()
            await self._expect(self._head(len(body)) + body, b"400")

    async def _slow_reader(self, case: Case) -> None:
        body = json.dumps(
            {"model": "demo", "prompt": case.prompt, "max_tokens": 300, "stream": True}
        ).encode()
        reader, writer = await self._connect(limit=2048)
        writer.write(self._head(len(body)) + body)
        for _ in range(self._random.randint(1, 20)):
            if not await reader.read(512):
                break
            await asyncio.sleep(0.1)
        writer.close()

    async def _expect(self, data: bytes, status: bytes) -> None:
        reader, writer = await self._connect()
        try:
            writer.write(data)
            line = await asyncio.wait_for(reader.readline(), 60)
            if status not in line:
                self.tally.wrong.append(f"expected {status!r}, found {line!r}")
        finally:
            writer.close()

    async def _connect(self, limit: int = 1 << 16) -> Any:
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port, limit=limit)

    def _head(self, length: int) -> bytes:
        return (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n"
        ).encode()


async def gpu_bytes(pid: int) -> list[int]:
    """What one process has of the GPUs' memory, as the driver's tool says; empty if it does not."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    pipe = asyncio.subprocess.PIPE
    smi = await asyncio.create_subprocess_exec("nvidia-smi", *asked, stdout=pipe)
    said, _ = await smi.communicate()
    rows = [line.split(", ") for line in said.decode().splitlines()]
    mib = [int(row[1]) for row in rows if row[0] == str(pid) and row[-1].isdigit()]
    return [sum(mib) << 20] if mib else []


def growth(readings: list[int]) -> tuple[float, float]:
    """Medians of the second quarter and of the last, MiB."""
    quarter = max(1, len(readings) // 4)
    second = readings[quarter : 2 * quarter] or readings
    return statistics.median(second) / 2**20, statistics.median(readings[-quarter:]) / 2**20


def settled(url: str) -> dict[str, Any]:
    """`/stats` once nothing runs any more; as it stands after 30 s otherwise."""
    end = time.monotonic() + 30
    while True:
        with urlopen(f"{url}/stats") as answer:
            found: dict[str, Any] = json.load(answer)
        idle = found["running"] == found["waiting"] == found["queued_requests"] == 0
        if (idle and found["cache_use"] == 0) or time.monotonic() > end:
            return found
        time.sleep(0.1)


def soak(seconds: float, workers: int, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The report; its `problems` are empty where all is well."""
    known = cases(overrides)
    command = [sys.executable, "-m", "paddock", "serve", "demo", "server.port=0", "--json"]
    server = subprocess.Popen([*command, *OVERRIDES, *overrides], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["url"]
        running = Soak(url, known, seconds, seed)
        asyncio.run(running.run(workers, server.pid))
        stats = settled(url)
        with urlopen(f"{url}/health") as answer:
            healthy = answer.status == 200
        connections = len(psutil.Process(server.pid).net_connections())
    finally:
        server.terminate()
        status = server.wait(60)
        if server.stdout is not None:
            server.stdout.close()
    tally = running.tally
    memory = {"process": growth(tally.memory)}
    if tally.gpu_memory:
        memory["GPU"] = growth(tally.gpu_memory)
    problems = list(tally.wrong[:20])
    if stats["running"] or stats["waiting"] or stats["queued_requests"] or stats["cache_use"]:
        problems.append(f"something is left: {stats}")
    for whose, (second, last) in memory.items():
        if last > second * GROWTH_ALLOWED:
            problems.append(f"memory of the {whose} grew from {second:.1f} to {last:.1f} MiB")
    if not healthy or status != 0:
        problems.append(f"health {healthy}, exit code {status}")
    return {
        "seconds": seconds,
        "workers": workers,
        "done": dict(tally.done),
        "wrong": len(tally.wrong),
        "generated_tokens": stats["generated_tokens"],
        "requests_finished": stats["requests_finished"],
        "preemptions": stats["preemptions"],
        "memory_mib": {
            whose: {"second quarter": second, "last quarter": last}
            for whose, (second, last) in memory.items()
        },
        "connections_left": connections,
        "problems": problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="such as engine=cuda")
    options = parser.parse_args()
    report = soak(options.seconds, options.workers, options.seed, options.overrides)
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
