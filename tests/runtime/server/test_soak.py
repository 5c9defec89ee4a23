"""Twelve seconds of `benchmarks/soak.py`, which runs for ten minutes otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_mixed_load_loses_nothing_and_leaves_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "benchmarks" / "soak.py"),
            *("--seconds", "12", "--json", tmp_path / "soak.json"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["problems"] == []
    kinds = {"whole", "streamed", "leaves", "leaves_unread", "malformed", "oversized"}
    assert kinds <= set(report["done"])
