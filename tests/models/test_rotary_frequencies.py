"""Rotary frequencies of real checkpoints' settings are those of transformers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.graph import GraphError
from paddock.layers import Rotary, RotaryScaling
from paddock.layers.rotary import frequencies
from paddock.models.llama import LlamaConfig
from tests.models.rotary_cases import ROTARY_CASES, RotaryCase

GOLDEN = Path(__file__).parents[1] / "golden" / "frequencies.json"


def of_paddock(case: RotaryCase) -> tuple[tuple[float, ...], float]:
    sizes = {
        "vocab_size": 8,
        "hidden_size": 2 * case.head_dim,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    scaling = LlamaConfig.read(sizes | case.fields).scaling()
    return frequencies(scaling, case.head_dim, case.length)


@pytest.mark.parametrize("name", ROTARY_CASES)
def test_golden(name: str) -> None:
    inverse, factor = json.loads(GOLDEN.read_text())[name]
    found, found_factor = of_paddock(ROTARY_CASES[name])
    # One unit in the last place of f32, in which both compute the power.
    np.testing.assert_allclose(found, inverse, rtol=3e-7)
    assert found_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("name", ROTARY_CASES)
def test_live(name: str) -> None:
    if not all(importlib.util.find_spec(m) for m in ("torch", "transformers")):
        pytest.skip("torch and transformers are not installed (`make parity` installs them)")
    from tests.models.transformers_frequencies import transformers_frequencies

    inverse, factor = transformers_frequencies(ROTARY_CASES[name])
    assert json.loads(GOLDEN.read_text())[name] == [pytest.approx(inverse, rel=3e-7), factor]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_type": "llama4"}, "rope_type 'llama4' is none of default, linear"),
        ({"rope_type": "linear"}, "'linear' needs 'factor'"),
        ({"rope_type": "linear", "factor": 0.0}, "factor is 0.0, expected a finite number above 0"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor is nan"),
        ({"rope_theta": 1.0}, "rope_theta is 1.0"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5"),
        ({"partial_rotary_factor": 0.1}, "1 elements of a head of 16 turn"),
        (
            {
                "rope_type": "llama3",
                "factor": 2.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
            "low_freq_factor 4.0 is not below high_freq_factor 4.0",
        ),
        (
            {
                "rope_type": "longrope",
                "short_factor": (1.0,) * 8,
                "long_factor": (1.0,) * 7,
                "original_max_position_embeddings": 8,
            },
            "long_factor has 7 numbers for 8 pairs",
        ),
    ],
)
def test_settings_without_meaning_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Rotary(16, RotaryScaling(**fields))
