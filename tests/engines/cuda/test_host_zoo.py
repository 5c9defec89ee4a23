"""The zoo through the cuda engine's host side, on the double; its kernels' launches, recorded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from paddock.engines import cuda
from paddock.engines.cuda.buckets import Bucket
from paddock.graph import DType
from paddock.layers import trace
from paddock.models import registry
from tests.engines.cuda import zoo
from tests.engines.cuda.host_device import HostDevice
from tests.engines.cuda.recorded_launches import record
from tests.models.decoder_draws import Config, Draw
from tests.models.drawn_families import FAMILIES
from tests.models.encoder_cases import NAMES as ENCODERS
from tests.models.encoder_cases import EncoderCase
from tests.models.encoder_decoder_cases import NAMES as OF_TWO
from tests.models.encoder_decoder_cases import EncoderDecoderCase
from tests.models.parity_cases import case

needs_transformers = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
# One of each: relative positions, windows and means, plain ones.
SOME_ENCODERS = ("MPNetModel/1", "ModernBertForSequenceClassification/1", "BertModel/1")
# Experts, latent attention, sinks; each kind of state; i64 sums and norms in another type.
SOME_DECODERS = (
    "DeepseekV3ForCausalLM",
    "GptOssForCausalLM",
    "JambaForCausalLM",
    "Qwen3NextForCausalLM",
    "OPTForCausalLM",
    "OlmoForCausalLM",
)
STEPS = (
    Bucket(1, 1, 1, 1, 0, 1),
    Bucket(8, 8, 8, 8, 0, 1),
    Bucket(64, 4, 4, 2, 2, 40),
)
STEPS_OF_TWO = (Bucket(8, 8, 8, 8, 0, 1, 0, 16), Bucket(64, 4, 4, 2, 2, 40, 64, 16))


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_decoders_equal_transformers(family: str, tmp_path: Path) -> None:
    assert zoo.decoder_error(family, DType.F32, HostDevice(), tmp_path) < 1e-4


@needs_transformers
@pytest.mark.parametrize(
    "name", [n if n in SOME_ENCODERS else pytest.param(n, marks=pytest.mark.slow) for n in ENCODERS]
)
def test_encoders_equal_transformers(name: str) -> None:
    assert zoo.encoder_error(name, DType.F32, HostDevice()) < 2e-5


@needs_transformers
@pytest.mark.parametrize(
    "name",
    [n if n.endswith("/1") else pytest.param(n, marks=pytest.mark.slow) for n in OF_TWO],
)
def test_encoder_decoders_equal_transformers(name: str) -> None:
    assert zoo.encoder_decoder_error(name, DType.F32, HostDevice()) < 2e-5


# --- kernels' launches ----------------------------------------------------------------------------


def launched(config: Config, dtype: DType, steps: tuple[Bucket, ...]) -> set[str]:
    """The kernels of a model's steps, each given what its source declares."""
    traced = trace(registry.read(config).build(), max_context=64, dtype=dtype)
    graph = cuda.build(traced, {}).graph
    return {name for step in steps for name in record(graph, step).launches}


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=str)
@pytest.mark.parametrize(
    "family",
    [n if n in SOME_DECODERS else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES],
)
def test_decoders_kernels_are_given_what_they_declare(family: str, dtype: DType) -> None:
    assert "gather" in launched(FAMILIES[family](Draw(family, 0, divisible=False)), dtype, STEPS)


@pytest.mark.parametrize("size", [16, 64, 128])
def test_a_cache_of_e4m3_reaches_its_kernels(size: int) -> None:
    config = case("qwen3").config | {"head_dim": size}
    traced = trace(registry.read(config).build(), max_context=64, dtype=DType.BF16)
    graph = cuda.build(traced, {}).graph
    for step in STEPS:
        recorder = record(graph, step, cache8=True)
        of_attention = [d for s, d in recorder.variants if s in ("attend", "attend_any", "store")]
        assert of_attention
        assert all(("CACHE8", 1) in defines for defines in of_attention)


@pytest.mark.parametrize(
    ("tokens", "kernel"), [(8, "streamed"), (64, "apply_scales"), (512, "gated_to_fp8")]
)
def test_products_in_fp8_reach_their_kernels(tokens: int, kernel: str) -> None:
    """Of many rows, what a gate makes is rounded in the kernel that makes it."""
    config = case("llama").config | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    traced = trace(registry.read(config).build(), max_context=64, dtype=DType.BF16)
    graph = cuda.build(traced, {}).graph
    step = Bucket(tokens, tokens, tokens, tokens, 0, 1)
    launches = record(graph, step, fp8=True).launches
    layers = config["num_hidden_layers"]
    assert kernel in launches
    assert launches.count("gated_to_fp8") == layers * (tokens > 384)
    # Before the output projection, and before the one behind the gate where that does not round.
    assert launches.count("rows_to_fp8") == layers * {8: 0, 64: 2, 512: 1}[tokens]


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=str)
@pytest.mark.parametrize("name", SOME_ENCODERS)
def test_encoders_kernels_are_given_what_they_declare(name: str, dtype: DType) -> None:
    assert "gather" in launched(EncoderCase(name).config, dtype, STEPS[2:])


@pytest.mark.parametrize("name", [n for n in OF_TWO if n.endswith("/1")])
def test_encoder_decoders_kernels_are_given_what_they_declare(name: str) -> None:
    found = launched(EncoderDecoderCase(name).config, DType.BF16, STEPS_OF_TWO)
    assert found & {"attend_any", "attend_tiles"}
