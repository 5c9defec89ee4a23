"""What HTTP costs: many streams through `paddock serve` beside the same batch offline.

    python benchmarks/serving.py RECIPE_OR_FOLDER [key=value ...] [--streams 64] [--rounds 3]

Two processes of the same recipe are kept open, a server and an offline worker, and take turns, so
that a machine that changes its speed does so under both. In each round all sequences begin at
once. Throughput and time between tokens are taken while all of them decode: from the last first
token to the first end. The load client runs on the same machine and takes its share of it, which
is told: CPU time per token, requests and their reading included, of the client, of the server's
event loop (its first thread) and of all its other threads (the engine's, and those that tokenize).

A second client, `seldom`, looks at what has come 20 times a second and not at each token. It cannot
tell the time between tokens, and takes next to nothing of the machine: what the server does then
is what it does for clients that are elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from paddock.runtime.measure import Percentiles
from paddock.runtime.server.load import Load, together

PIECE = b"data: {"
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"

WORKER = """
import json, sys
import numpy as np
from paddock.recipes import pipeline
from paddock.recipes.any_checkpoint import recipe_for
from paddock.recipes.compose import compose
from paddock.runtime.sampling.sampling_params import SamplingParams
name, *overrides = json.loads(sys.argv[1])
recipe, implied = recipe_for(name)
running = pipeline.start(compose(recipe, (*implied, *overrides), []).recipe)
print(json.dumps({"vocab_size": running.session.vocab_size}), flush=True)
for line in sys.stdin:
    streams, prompt, new, seed = json.loads(line)
    random = np.random.default_rng(seed)
    prompts = random.integers(0, running.session.vocab_size, (streams, prompt)).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
    handles = [running.loop.submit(one, params) for one in prompts]
    times = [handle.result().timing.token_times[0] for handle in handles]
    print(json.dumps(times), flush=True)
running.close()
"""


def figures(times: list[list[float]]) -> dict[str, Any]:
    """Of the time in which all decode. times: when each token of each sequence was there."""
    start, end = max(t[0] for t in times), min(t[-1] for t in times)
    inside = [[moment for moment in t if start < moment <= end] for t in times]
    gaps = [b - a for t in inside for a, b in pairwise(t)]
    between = Percentiles.of(gaps)
    return {
        "tokens_per_s": sum(map(len, inside)) / (end - start),
        "between_p50_s": between.p50,
        "between_p99_s": between.p99,
    }


def cpu_seconds(process: int) -> dict[int, float]:
    """CPU time so far of each thread of a process, by its number (Linux)."""
    found: dict[int, float] = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def cpu_per_token(
    server: int, before: dict[int, float], after: dict[int, float], client_s: float, tokens: int
) -> dict[str, float]:
    """Microseconds of CPU time."""
    spent = {thread: after[thread] - before.get(thread, 0.0) for thread in after}
    event_loop = spent.pop(server)
    return {
        "client_us": client_s / tokens * 1e6,
        "event_loop_us": event_loop / tokens * 1e6,
        "engine_us": sum(spent.values()) / tokens * 1e6,
    }


LOOK_S = 0.05


def seldom(url: str, load: Load, streams: int, *, seed: int) -> float:
    """Tokens a second while all decode, for a client that reads every `LOOK_S` only."""
    parts = urlsplit(url)
    random = np.random.default_rng(seed)
    sockets = []
    for _ in range(streams):
        body = load.body(random)
        connection = socket.create_connection((parts.hostname or "localhost", parts.port or 80))
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        connection.setblocking(False)
        sockets.append(connection)
    answers = [bytearray() for _ in sockets]
    looks: list[tuple[float, list[int]]] = []
    while not all(answer.endswith(END) for answer in answers):
        time.sleep(LOOK_S)
        now = time.perf_counter()
        for connection, answer in zip(sockets, answers, strict=True):
            with contextlib.suppress(BlockingIOError):
                while data := connection.recv(1 << 20):
                    answer += data
        # The last event has the usage, and no text.
        looks.append((now, [min(a.count(PIECE), load.new_tokens) for a in answers]))
    for connection in sockets:
        connection.close()
    assert all(count == load.new_tokens for count in looks[-1][1])
    inside = [
        (moment, sum(counts))
        for moment, counts in looks
        if min(counts) > 0 and max(counts) < load.new_tokens
    ]
    (start, first), (end, last) = inside[0], inside[-1]
    return (last - first) / (end - start)


def measure(arguments: list[str], streams: int, prompt: int, new: int, rounds: int) -> Any:
    own = [*arguments[1:], f"limits.max_sequences={streams}"]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, json.dumps([arguments[0], *own])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "paddock", "serve", arguments[0], *own, "--json"),
            *("server.port=0", "server.log_requests=false"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert server.stdout is not None
    try:
        vocabulary = json.loads(worker.stdout.readline())["vocab_size"]
        told = json.loads(server.stdout.readline())

        def offline(count: int, seed: int) -> list[list[float]]:
            worker.stdin.write(json.dumps([streams, prompt, count, seed]) + "\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
            found: list[list[float]] = json.loads(worker.stdout.readline())  # type: ignore[union-attr]
            return found

        cpu: list[dict[str, float]] = []

        def served(count: int, seed: int) -> list[list[float]]:
            load = Load(told["model"], vocabulary, prompt, count)
            before, begun = cpu_seconds(server.pid), time.process_time()
            found = asyncio.run(together(told["url"], load, streams, seed=seed))
            client_s, after = time.process_time() - begun, cpu_seconds(server.pid)
            assert all(one.status == 200 and one.tokens == count for one in found)
            cpu.append(cpu_per_token(server.pid, before, after, client_s, streams * count))
            return [one.pieces for one in found]

        def seldom_read(count: int, seed: int) -> float:
            load = Load(told["model"], vocabulary, prompt, count)
            return seldom(told["url"], load, streams, seed=seed)

        offline(4, 99)
        served(4, 99)
        taken: dict[str, list[dict[str, Any]]] = {
            "offline": [],
            "served": [],
            "seldom_read": [],
        }
        for seed in range(rounds):
            taken["offline"].append(figures(offline(new, seed)))
            taken["served"].append(figures(served(new, seed)))
            taken["seldom_read"].append({"tokens_per_s": seldom_read(new, seed)})
    finally:
        worker.stdin.close()
        server.terminate()
        worker.wait()
        server.wait()
        worker.stdout.close()
        server.stdout.close()

    def ratio(kind: str) -> dict[str, Any]:
        found = [
            b["tokens_per_s"] / a["tokens_per_s"]
            for a, b in zip(taken["offline"], taken[kind], strict=True)
        ]
        return {"median": median(found), "rounds": found}

    steps = [a["between_p50_s"] for a in taken["offline"]]
    tails = [b["between_p99_s"] / s for b, s in zip(taken["served"], steps, strict=True)]
    return {
        "recipe": arguments,
        "streams": streams,
        "prompt_tokens": prompt,
        "new_tokens": new,
        **taken,
        "cpu_per_token": {key: median(one[key] for one in cpu[1:]) for key in cpu[0]},
        "throughput_ratio": ratio("served"),
        "throughput_ratio_seldom_read": ratio("seldom_read"),
        "p99_between_over_offline_step": {"median": median(tails), "rounds": tails},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("recipe", nargs="+", help="a recipe or folder, and overrides")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    report = measure(
        options.recipe,
        options.streams,
        options.prompt_tokens,
        options.new_tokens,
        options.rounds,
    )
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
