"""`paddock bench` and the plot it draws. What it measures is tested with `runtime.measure`."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from paddock.graph import DType, QuantFormat
from paddock.layers import quantize, trace
from paddock.models import registry
from paddock.recipes.pipeline import DEMO
from paddock.runtime.measure import bytes_read_per_step
from tests.paddock.conftest import Run
from tests.paddock.test_cli import failed

SHORT = ["--rounds", "1", "--prompt-tokens", "16", "--new-tokens", "8", "--batch-sizes", "1,2"]


def test_json_has_every_figure(paddock: Run) -> None:
    done = paddock("bench", "demo", *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["recipe"], report["engine"], report["quant"]) == ("demo", "openvino", "none")
    assert report["peak_memory_bytes"] > 50e6
    assert report["bandwidth_bytes_per_s"] == max(report["bandwidths_bytes_per_s"]) > 1e8
    assert report["build_s"] > 0
    assert report["start_stages_s"]["open"] > 0
    assert [batch["sequences"] for batch in report["batches"]] == [1, 2]
    for batch in report["batches"]:
        assert batch["prefill_tokens_per_s"] > 0
        decode = batch["decode_tokens_per_s"]
        read = report["weight_bytes_read_per_step"] + report["cache_bytes_per_token"] * (
            batch["sequences"] * 20
        )
        assert batch["decode_bytes_per_s"] == pytest.approx(
            decode / batch["sequences"] * read, rel=0.02
        )
        assert batch["bandwidth_fraction"] == pytest.approx(
            batch["decode_bytes_per_s"] / report["bandwidth_bytes_per_s"]
        )
        for latency in ("to_first_token_s", "between_tokens_s"):
            assert 0 < batch[latency]["p50"] <= batch[latency]["p90"] <= batch[latency]["p99"]
        assert 0 < batch["overhead_fraction"] < 1


def test_the_table_shows_them(paddock: Run) -> None:
    done = paddock("bench", "demo", *SHORT, "-q")
    assert done.returncode == 0
    assert "memory bandwidth" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(row[-1].endswith("%") for row in rows)


def test_multirun_runs_each_combination(paddock: Run) -> None:
    sweep = ["bench", "-cn", "demo", "quant=none,int8", "engine.threads=1", "-m"]
    done = paddock(*sweep, *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert (first["quant"], first["threads"]) == ("none", 1)
    assert (second["quant"], second["threads"]) == ("int8", 1)
    assert first["overrides"] == ["quant=none", "engine.threads=1"]
    assert second["weight_bytes_read_per_step"] < 0.3 * first["weight_bytes_read_per_step"]
    assert "run 2 of 2: demo quant=int8 engine.threads=1" in done.stderr


def test_a_run_that_fails_is_reported_and_the_others_go_on(paddock: Run) -> None:
    done = paddock("bench", "demo", "limits.max_context=16,64", "-m", *SHORT, "--json")
    assert done.returncode == 1
    (run,) = (json.loads(line) for line in done.stdout.splitlines())
    assert run["overrides"] == ["limits.max_context=64"]
    assert "more than limits.max_context (16)" in done.stderr
    assert "1 of 2 runs failed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["limits.max_sequences=4", "--batch-sizes", "8"], "limits.max_sequences (4)"),
        (["--prompt-tokens", "1020"], "more than limits.max_context (1024)"),
        (["-m", "quant=int8,int9"], "int9"),
        (["quant=none,int8"], "--multirun"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    paddock: Run, arguments: list[str], expected: str
) -> None:
    done = paddock("bench", "demo", *arguments, "-q")
    assert expected in failed(done, 2)


def test_without_matplotlib_a_plot_is_refused_at_once(paddock: Run, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = paddock("bench", "demo", "--plot", "p.png", PYTHONPATH=path)
    assert "--plot needs matplotlib" in failed(done, 2)
    assert "pip install 'paddock[plot]'" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_a_plot_is_drawn(paddock: Run, tmp_path: Path) -> None:
    for name, begin in (("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")):
        done = paddock("bench", "demo", *SHORT, "--plot", name, "-q")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).read_bytes().startswith(begin)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.pdf", "p.png", "p.svg"]
    assert "expected a name that ends in" in failed(paddock("bench", "demo", "--plot", "p.x"), 2)
    assert "there is no folder" in failed(paddock("bench", "demo", "--plot", "no/p.png"), 2)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_bytes_read_are_those_of_the_matrix_products(tied: bool, quantized: bool) -> None:
    config = json.loads((DEMO / "config.json").read_text()) | {"tie_word_embeddings": tied}
    model = registry.read(config).build()
    if quantized:
        quantize(model, QuantFormat(DType.I8, None))
    graph = trace(model, dtype=DType.F32, max_context=64)
    hidden, inner, layers, vocabulary, kv = 256, 768, 6, 4096, 128
    shapes = layers * [
        (2 * hidden, hidden),  # queries and output
        (2 * kv, hidden),
        (2 * inner, hidden),
        (hidden, inner),
    ] + [(vocabulary, hidden)]
    products = np.array(shapes)
    norms = 4 * hidden * (2 * layers + 1)
    if quantized:  # a scale of two bytes for each row
        expected = int((products[:, 0] * (products[:, 1] + 2)).sum()) + norms
    else:
        expected = 4 * int(products.prod(axis=1).sum()) + norms
    assert bytes_read_per_step(graph) == expected


def test_interrupting_a_sweep_ends_it(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "paddock", "bench", "demo", "-m", "engine.threads=1,2"]
    started = subprocess.Popen(
        [*command, "--rounds", "1000"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert started.stderr is not None
    assert started.stderr.readline().startswith(b"run 1 of 2")
    time.sleep(2.0)
    os.killpg(started.pid, signal.SIGINT)  # a terminal's Ctrl-C goes to the whole group
    stdout, stderr = started.communicate(timeout=180)
    assert (started.returncode, stdout) == (130, b"")
    assert b"Traceback" not in stderr
