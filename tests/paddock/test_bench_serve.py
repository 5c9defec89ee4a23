"""`paddock bench serve`: rates, figures, plots and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.paddock.conftest import Run

SHORT = ["--requests", "6", "--prompt-tokens", "8", "--new-tokens", "6"]


def test_latency_and_throughput_at_each_rate(paddock: Run) -> None:
    done = paddock("bench", "serve", "demo", *SHORT, "--rates", "20,all", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [point["rate"] for point in report["points"]] == [20.0, None]
    for point in report["points"]:
        assert point["answered"] == 6
        assert point["refused"] == 0
        assert point["tokens_per_s"] > 0
        for latency in ("to_first_token_s", "between_tokens_s", "to_last_token_s"):
            assert 0 <= point[latency]["p50"] <= point[latency]["p99"]
        assert point["to_first_token_s"]["p50"] < point["to_last_token_s"]["p50"]
    waits = np.random.default_rng(0).exponential(1 / 20, 6)
    assert report["points"][0]["requests_per_s"] < 6 / waits[:5].sum()  # they came one by one


def test_a_sweep_is_drawn(paddock: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "serve.svg"
    sweep = ["--multirun", "limits.max_sequences=1,4"]
    done = paddock("bench", "serve", "demo", *SHORT, *sweep, "--rates", "all", "--plot", file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s") == 2
    assert "limits.max_sequences=4" in done.stdout
    assert "</svg>" in file.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--rates", "fast"], "--rates"),
        (["demo", "--rates", "0"], "--rates"),
        (["demo", "--requests", "1"], "--requests"),
        (["nothing-like-it"], "nothing-like-it"),
        (["demo", "limits.max_sequence=1"], "limits.max_sequences"),
        (["demo", "--plot", "x.gif"], "--plot"),
        ([], "which recipe"),
    ],
)
def test_mistakes_are_said_at_once(paddock: Run, arguments: list[str], message: str) -> None:
    done = paddock("bench", "serve", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
