"""Opening a model takes little more memory than its weights do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY_BYTES = 80e6  # code and tables of OpenVINO that the first compilation brings in


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["bf16", "f32", "int4"])
def test_opening_needs_little_more_than_the_weights(tmp_path: Path, form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.open_large_model", str(tmp_path), form],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["weights"] > 2e8
    assert found["peak"] < 1.3 * found["weights"] + LIBRARY_BYTES
    assert found["kept"] < 1.1 * found["weights"] + LIBRARY_BYTES
    assert found["anonymous"] < 1.1 * found["weights"]
