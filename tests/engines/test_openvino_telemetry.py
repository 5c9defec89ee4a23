"""OpenVINO is imported without telling anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("imported", "processes"),
    [
        ("openvino", "1"),  # what is to be prevented; where this fails, nothing needs to be
        ("paddock.engines.openvino.session", "0"),
    ],
)
def test_importing_it_starts_nothing(tmp_path: Path, imported: str, processes: str) -> None:
    script = f"""
import multiprocessing
started = []
multiprocessing.Process.start = lambda self: started.append(self)  # the request is not made
multiprocessing.Process.join = lambda self, timeout=None: None
multiprocessing.Process.is_alive = lambda self: False
import {imported}
import concurrent.futures.thread
concurrent.futures.thread._python_exit()  # its threads have ended
print(len(started))
"""
    # Opting out, which is kept in the home folder, would hide it; so would CI.
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [processes]
