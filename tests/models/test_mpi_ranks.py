"""Architectures on several ranks as MPI processes: the ranks start once and run them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.mpi_meshes import MESHES
from tests.models.parity_cases import CHARACTERISTIC

pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")

ROOT = Path(__file__).parents[2]
CASES = [
    *(f"reference:{name}" for name in (*CHARACTERISTIC, "llama-tied", "llama-multi-query")),
    "openvino:qwen3",
    "openvino:llama",
]


def test_ranks_as_processes_agree_with_transformers() -> None:
    launcher = Path(sys.executable).parent / "mpirun"
    done = subprocess.run(
        [str(launcher), "-n", "4", sys.executable, "-m", "tests.models.mpi_ranks", *CASES],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    errors: dict[str, dict[str, float]] = {name: {} for name in CASES}
    for line in filter(None, done.stdout.splitlines()):
        for name, of_meshes in json.loads(line).items():
            errors[name] |= of_meshes
    for name, of_meshes in errors.items():
        assert sorted(of_meshes) == sorted(f"tp={tp} pp={pp}" for tp, pp in MESHES), name
        assert max(of_meshes.values()) < 2e-5, (name, of_meshes)
