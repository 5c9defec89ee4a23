"""The bundled checkpoint and its larger sibling, with the models that they are of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import paddock
from paddock.graph import Array, DType, Mesh, Parameter, QuantFormat
from paddock.layers import quantize
from paddock.models.llama import LlamaConfig, LlamaForCausalLM
from paddock.weights import BoundWeights, Checkpoint, prove, write
from paddock.weights.llama import HUGGING_FACE
from paddock.weights.quantize import dequantize_rows

DEMO = Path(paddock.__file__).parent / "demo"
TARGET = Path(__file__).parents[3] / "shared" / "checkpoints" / "target"


@pytest.fixture(params=[DEMO, TARGET], ids=["demo", "target"])
def folder(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    if not folder.is_dir():
        pytest.skip(f"no checkpoint at {folder}")
    return folder


def slots_of(folder: Path, quant: QuantFormat | None = None) -> tuple[dict[str, Parameter], bool]:
    """Slots, and whether head and embedding are tied."""
    config = json.loads((folder / "config.json").read_text())
    known = {k: v for k, v in config.items() if k in LlamaConfig.model_fields}
    model = LlamaForCausalLM(LlamaConfig.model_validate(known))
    model.assign_names()
    if quant is not None:
        quantize(model, quant)
    return dict(model.named_parameters()), config["tie_word_embeddings"]


def by_the_library(folder: Path) -> Mapping[str, Array]:
    tensors: dict[str, Array] = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "numpy") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def test_every_tensor_arrives(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    expected = by_the_library(folder)
    assert set(checkpoint.tensors) == set(expected)
    slots, tied = slots_of(folder)
    binding = prove(slots, checkpoint.tensors, HUGGING_FACE, tied=tied)
    assert binding.ignored == ()
    assert checkpoint.bytes_read == 0
    for name in slots:
        found = binding.load(name)
        if "qkv_proj" in name:
            pieces = [expected[name.replace("qkv_proj", f"{p}_proj")] for p in "qkv"]
        elif "gate_up_proj" in name:
            pieces = [expected[name.replace("gate_up_proj", f"{p}_proj")] for p in ("gate", "up")]
        else:
            pieces = [expected["model.embed_tokens.weight" if "lm_head" in name else name]]
        np.testing.assert_array_equal(found, np.concatenate(pieces))


@pytest.mark.parametrize("tp", [2, 4])
def test_ranks_read_their_share_of_the_bytes(folder: Path, tp: int) -> None:
    slots, tied = slots_of(folder)
    whole = {n: b for n, b in _loaded(folder, Mesh(), slots, tied)[0].items()}
    shares = []
    for mesh in Mesh(tp=tp).ranks():
        loaded, read = _loaded(folder, mesh, slots, tied)
        assert read == sum(array.nbytes for array in loaded.values())
        shares.append(loaded)
    for name, slot in slots.items():
        if slot.shard is None:
            assert all(np.array_equal(share[name], whole[name]) for share in shares)
        elif slot.shard.dim == 1:
            joined = np.concatenate([share[name] for share in shares], 1)
            np.testing.assert_array_equal(joined, whole[name])


def _loaded(
    folder: Path, mesh: Mesh, slots: dict[str, Parameter], tied: bool
) -> tuple[dict[str, Array], int]:
    checkpoint = Checkpoint.open(folder)
    binding = prove(slots, checkpoint.tensors, HUGGING_FACE, mesh, tied=tied)
    return {name: binding.load(name) for name in slots}, checkpoint.bytes_read


def test_bf16_is_left_where_it_is(folder: Path, tmp_path: Path) -> None:
    slots, tied = slots_of(folder)
    binding = prove(slots, Checkpoint.open(folder).tensors, HUGGING_FACE, tied=tied)
    manifest = write(binding, tmp_path, DType.BF16)
    assert manifest["bytes"] < 100_000
    weights = BoundWeights.open(tmp_path)
    weights.verify()
    for name in slots:
        np.testing.assert_array_equal(weights.whole(name), binding.load(name))


@pytest.mark.parametrize(
    ("quant", "bits", "error"),
    [
        (QuantFormat(DType.I8), 8.1, 1e-4),
        (QuantFormat(DType.I4, 32), 4.6, 8e-3),
        (QuantFormat(DType.I4, 128), 4.2, 1.1e-2),
    ],
    ids=str,
)
def test_quantized_sizes_and_errors(
    folder: Path, tmp_path: Path, quant: QuantFormat, bits: float, error: float
) -> None:
    """Bits a weight, and squared error relative to the weights' own squares."""
    slots, tied = slots_of(folder, quant)
    binding = prove(slots, Checkpoint.open(folder).tensors, HUGGING_FACE, tied=tied)
    write(binding, tmp_path, DType.BF16)
    weights = BoundWeights.open(tmp_path)
    for name, slot in slots.items():
        if slot.quant is None:
            continue
        scales = weights.whole(f"{name.removesuffix('.weight')}.scale")
        stored = weights.stored(name).nbytes + scales.nbytes
        assert stored * 8 / np.prod(slot.shape) < bits
        expected = binding.load(name, DType.F32)
        found = dequantize_rows(weights.whole(name).astype(np.int8), scales)
        assert np.sum((found - expected) ** 2) < error * np.sum(expected**2)
