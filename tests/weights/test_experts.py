"""Rules for experts' weights: stacked, folded, in four bits; and for decay rates."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from paddock.graph import DType, Mesh, Parameter, Parts, QuantFormat, Shard
from paddock.weights import (
    BoundWeights,
    Fold,
    MinusExp,
    Mxfp4,
    Rule,
    Stack,
    Transpose,
    WeightError,
    prove,
    write,
)
from tests.weights.test_bind import bound, infos, numbered, stored

EXPERTS = Shard(0, Parts({"experts": 4}))


def test_experts_one_after_another_in_a_tensor(tmp_path: Path) -> None:
    """DBRX: two tensors make up the first product, the second lies turned."""
    rules: list[Rule] = [
        Stack("experts.gate_up", {"gate": "experts.w1", "up": "experts.v1"}),
        Fold("experts.down"),
        Transpose("experts.down"),
    ]
    slots = {
        "experts.gate_up": Parameter((4, 6, 2), EXPERTS),
        "experts.down": Parameter((4, 2, 3), EXPERTS),
    }
    w1, v1, down = (numbered(12, 2, start=100 * i) for i in range(3))
    arrays = {"experts.w1": w1, "experts.v1": v1, "experts.down": down}
    checkpoint = stored(tmp_path, arrays)
    for mesh in Mesh(tp=2).ranks():
        binding = bound(slots, checkpoint, rules, mesh)
        for e in range(2):
            rows = slice(3 * (2 * mesh.tp_rank + e), 3 * (2 * mesh.tp_rank + e + 1))
            both = np.concatenate([w1[rows], v1[rows]])
            np.testing.assert_array_equal(binding.load("experts.gate_up")[e], both)
            np.testing.assert_array_equal(binding.load("experts.down")[e], down[rows].T)
    with pytest.raises(WeightError, match=r"expected a multiple of 4 rows, found \[10, 2\]"):
        prove(slots, infos({n: (10 if n.endswith("v1") else 12, 2) for n in arrays}), rules)


def test_the_rows_of_an_expert_are_joined(tmp_path: Path) -> None:
    arrays = {
        f"experts.{e}.{n}.weight": numbered(3, 2, start=100 * e + 10 * i)
        for e in range(4)
        for i, n in enumerate(("w1", "w3"))
    }
    rule = Stack("experts.gate_up", {"gate": "experts.{e}.w1", "up": "experts.{e}.w3"})
    slots = {"experts.gate_up.weight": Parameter((4, 6, 2), EXPERTS)}
    checkpoint = stored(tmp_path, arrays)
    for mesh in Mesh(tp=2).ranks():
        mine = range(2 * mesh.tp_rank, 2 * mesh.tp_rank + 2)
        np.testing.assert_array_equal(
            bound(slots, checkpoint, [rule], mesh).load("experts.gate_up.weight"),
            [
                np.concatenate([arrays[f"experts.{e}.{n}.weight"] for n in ("w1", "w3")])
                for e in mine
            ],
        )


def test_experts_of_different_shapes_are_refused() -> None:
    shapes = {f"experts.{e}.w2": (3, 2) for e in range(3)} | {"experts.3.w2": (3, 5)}
    slots = {"experts.down": Parameter((4, 3, 2), EXPERTS)}
    rules = [Stack("experts.down", {"down": "experts.{e}.w2"})]
    with pytest.raises(WeightError, match=r"expected \[3, 2\] as the first expert has"):
        prove(slots, infos(shapes), rules)


def test_rows_are_folded(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, {"w": numbered(12, 2)})
    slots = {"w": Parameter((4, 3, 2), EXPERTS)}
    for mesh in Mesh(tp=2).ranks():
        binding = bound(slots, checkpoint, [Fold("w")], mesh)
        whole = numbered(12, 2).reshape(4, 3, 2)
        np.testing.assert_array_equal(
            binding.load("w"), whole[2 * mesh.tp_rank : 2 * mesh.tp_rank + 2]
        )
    with pytest.raises(WeightError, match="expected a multiple of 5 rows"):
        bound({"w": Parameter((5, 3, 2))}, checkpoint, [Fold("w")])


def test_rates_are_minus_the_exponential_of_what_is_stored(tmp_path: Path) -> None:
    logs = np.linspace(-2, 2, 6, dtype=np.float32)
    binding = bound({"A": Parameter((6,))}, stored(tmp_path, {"A": logs}), [MinusExp("A")])
    np.testing.assert_allclose(binding.load("A"), -np.exp(logs.astype(np.float64)), rtol=1e-6)


def mxfp4(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "w_blocks": random.integers(0, 256, (4, 6, 3, 16)).astype(np.uint8),
        "w_scales": random.integers(110, 135, (4, 6, 3)).astype(np.uint8),
    }


def test_mxfp4_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed (`make parity` installs it)")
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    arrays = mxfp4(np.random.default_rng(0))
    checkpoint = stored(tmp_path, arrays)
    # transformers exchanges the last two axes.
    expected = convert_moe_packed_tensors(
        *(torch.tensor(arrays[f"w_{n}"]) for n in ("blocks", "scales")), dtype=torch.float32
    )
    wanted = expected.numpy()
    if wanted.shape[1] == 96:
        wanted = wanted.swapaxes(1, 2)
    slots = {"w": Parameter((4, 6, 96), EXPERTS)}
    rules: list[Rule] = [Transpose("w"), Mxfp4("w")]
    for mesh in Mesh(tp=2).ranks():
        found = bound(slots, checkpoint, rules, mesh).load("w")
        assert found.dtype == np.float32
        mine = slice(2 * mesh.tp_rank, 2 * mesh.tp_rank + 2)
        np.testing.assert_array_equal(found, wanted[mine])


def test_a_part_of_the_columns_of_mxfp4(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, mxfp4(np.random.default_rng(1)))
    whole = bound({"w": Parameter((4, 6, 96))}, checkpoint, [Mxfp4("w")]).load("w")
    columns = Shard(2, Parts({"in": 96}))
    slots = {"w": Parameter((4, 6, 96), columns)}
    shares = [bound(slots, checkpoint, [Mxfp4("w")], mesh).load("w") for mesh in Mesh(tp=4).ranks()]
    np.testing.assert_array_equal(np.concatenate(shares, 2), whole)


def test_what_was_widened_is_read_transposed(tmp_path: Path) -> None:
    checkpoint = stored(tmp_path, {"w": numbered(4, 8, 6)})
    found = bound({"w": Parameter((4, 6, 8), EXPERTS)}, checkpoint, [Transpose("w"), Mxfp4("w")])
    np.testing.assert_array_equal(found.load("w"), numbered(4, 8, 6).swapaxes(1, 2))


def test_bytes_of_another_form_are_refused() -> None:
    tensors = infos({"w_blocks": (4, 6, 3, 8), "w_scales": (4, 6, 3)}, "U8")
    with pytest.raises(WeightError, match=r"expected bytes \[experts, rows, groups, 16\]"):
        prove({"w": Parameter((4, 6, 96))}, tensors, [Mxfp4("w")])


@pytest.mark.parametrize("quant", [QuantFormat(DType.I8), QuantFormat(DType.I4, 8)])
def test_experts_are_quantized_row_by_row(quant: QuantFormat, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 6, 16)).astype(np.float32)
    checkpoint = stored(tmp_path, {"w.weight": values})
    slot = Parameter((4, 6, 16), EXPERTS, quantizable=True)
    slot.quant = quant
    folder = tmp_path / "bound"
    folder.mkdir()
    write(bound({"w.weight": slot}, checkpoint), folder, DType.F32)
    weights = BoundWeights.open(folder, tmp_path)
    integers, scales = weights.whole("w.weight"), weights.whole("w.scale")
    assert integers.shape == values.shape
    assert scales.shape == (4, 6, 1 if quant.group is None else 2)
    steps = np.repeat(np.abs(scales.astype(np.float32)), 16 // scales.shape[2], axis=2)
    close = integers.astype(np.float32) * np.repeat(
        scales.astype(np.float32), 16 // scales.shape[2], axis=2
    )
    assert (np.abs(close - values) <= steps * (0.51 if quant.group is None else 2)).all()
    assert np.abs(close - values).mean() < steps.mean()
