"""The logits that parity cases are compared with."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from paddock.graph import Array
from tests.models.parity_cases import case

GOLDEN = Path(__file__).parents[1] / "golden" / "parity.npz"
LIVE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


@cache
def live(name: str) -> list[Array]:
    """What transformers computes now; skips the test where it is not installed."""
    if not LIVE:
        pytest.skip("torch and transformers are not installed (`make parity` installs them)")
    from tests.models.transformers_logits import transformers_logits

    return transformers_logits(case(name))


@cache
def golden(name: str) -> list[Array]:
    """What transformers computed when the files were made."""
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return [arrays[f"{name}/{i}"] for i in range(len(case(name).sequences))]


def expected(name: str) -> list[Array]:
    """Logits [tokens, vocab] of the case's sequences, from whichever there is."""
    return live(name) if LIVE else golden(name)
