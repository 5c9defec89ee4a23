"""A model of 1.2 B parameters: what building it takes."""

from __future__ import annotations

import time

import pytest

from paddock.engines import tensorrt
from paddock.engines.tensorrt.flavours import Flavour
from paddock.graph import DType
from paddock.layers import trace
from paddock.models import registry
from tests.models.parity_cases import LLAMA

# The sizes of Llama 3.2 1B.
LARGE = LLAMA | {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@pytest.mark.slow
def test_a_plan_of_1b_is_small_and_takes_little_memory(
    flavour: Flavour, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seconds are told, not asserted: docs/performance.md has them of a known machine."""
    graph = trace(registry.read(LARGE).build(), dtype=DType.BF16, max_context=8192)
    began = time.perf_counter()
    engine = tensorrt.build(
        graph,
        {
            "flavour": flavour.package,
            "target": ["sm80", "sm89", "sm120"],
            "max_context": 8192,
            "max_sequences": 16,
            "max_tokens_per_step": 2048,
        },
    )
    seconds = time.perf_counter() - began
    plan = engine.plan
    with capsys.disabled():
        print(f"\n1.2 B: {seconds:.1f} s, {plan.peak_bytes / 1e9:.2f} GB, {len(plan.data)} bytes")
    assert plan.peak_bytes < 0.6e9
    assert len(plan.data) < 30e6
