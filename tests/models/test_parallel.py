"""Tensor and pipeline ranks together compute what one rank computes alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from paddock.engines import openvino, reference
from paddock.graph import GraphError, Mesh
from paddock.graph.ops import AllGather, AllReduce, Receive, Send, Weight
from paddock.layers import trace
from paddock.models import registry
from tests.models.expected_logits import expected
from tests.models.parity_cases import CHARACTERISTIC, Config, case
from tests.models.play import chunks, play, relative_error
from tests.models.threads_as_ranks import MeshSession

MESHES = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 3)]
# Two key heads at tp=4, and one at every tp above 1: neighbours hold the same one.
NAMES = (*CHARACTERISTIC, "llama-tied", "llama-multi-query")


# Heads must be of a size that OpenVINO's kernels have, see tests/engines/test_openvino_session.py.
ENGINES = [(reference, name) for name in NAMES] + [(openvino, "qwen3"), (openvino, "llama")]


@pytest.mark.parametrize(("tp", "pp"), MESHES)
@pytest.mark.parametrize(("engine", "name"), ENGINES)
def test_ranks_agree_with_transformers(engine: Any, name: str, tp: int, pp: int) -> None:
    some = case(name)
    architecture = registry.read(some.config)
    session = MeshSession(
        architecture, some.checkpoint(), tp=tp, pp=pp, max_context=some.max_context, engine=engine
    )
    random = np.random.default_rng([tp, pp])
    lengths = [len(ids) for ids in some.sequences]
    try:
        found = play(session, some.sequences, chunks(lengths, random), random)
    finally:
        session.close()
    assert relative_error(found, expected(name)) < 2e-5

    every = set(dict(architecture.build().named_parameters()))
    for tp_rank in range(tp):
        stages = [
            session.weights[Mesh(tp=tp, pp=pp, tp_rank=tp_rank, pp_rank=stage)].read
            for stage in range(pp)
        ]
        assert sum(map(len, stages)) == len(every)  # no slot on two stages
        assert set().union(*stages) == every


@pytest.mark.parametrize(("tp", "pp"), MESHES)
def test_a_rank_holds_its_share_and_talks_no_more_than_needed(tp: int, pp: int) -> None:
    model = registry.read(case("llama-biases").config).build()
    layers = [0] * pp
    for mesh in Mesh(tp=tp, pp=pp).ranks():
        graph = trace(model, max_context=8, mesh=mesh)
        shapes = {n.op.key: n.op.shape for n in graph.find(Weight) if isinstance(n.op, Weight)}
        held = mesh.stage(3)
        layers[mesh.pp_rank] = len(held)
        for i in held:
            prefix = f"model.layers.{i}."
            # One of two key heads is the least that a rank holds.
            kv = 32 // min(tp, 2)
            assert shapes[f"{prefix}self_attn.qkv_proj.weight"] == (64 // tp + 2 * kv, 64)
            assert shapes[f"{prefix}self_attn.o_proj.weight"] == (64, 64 // tp)
            assert shapes[f"{prefix}mlp.gate_up_proj.weight"] == (80 // tp, 64)
            assert shapes[f"{prefix}mlp.gate_up_proj.bias"] == (80 // tp,)
            assert shapes[f"{prefix}mlp.down_proj.weight"] == (64, 40 // tp)
            assert shapes[f"{prefix}mlp.down_proj.bias"] == (64,)
        assert ("model.embed_tokens.weight" in shapes) == mesh.is_first
        assert ("lm_head.weight" in shapes) == mesh.is_last
        if mesh.is_last:
            assert shapes["lm_head.weight"] == (64 // tp, 64)
        assert len(list(graph.find(AllReduce))) == (2 * len(held) if tp > 1 else 0)
        assert len(list(graph.find(AllGather))) == (1 if tp > 1 and mesh.is_last else 0)
        assert len(list(graph.find(Receive))) == (not mesh.is_first)
        assert len(list(graph.find(Send))) == (not mesh.is_last)
    assert sum(layers) == 3
    assert max(layers) - min(layers) <= 1


@pytest.mark.parametrize(
    ("changes", "tp", "pp", "message"),
    [
        (
            {},
            3,
            1,
            r"model\.layers\.0\.self_attn\.o_proj\.weight: part 'in': 4 units of 16 do not divide"
            r" over tp=3; tp may be one of 1, 2, 4$",
        ),
        ({}, 8, 1, r"self_attn\.o_proj\.weight: .* tp may be one of 1, 2, 4$"),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16},
            2,
            1,
            r"self_attn\.qkv_proj\.weight: part 'k': 3 units of 16 .* one of 1, 3, or a multiple"
            r" of 3$",
        ),
        (
            {"intermediate_size": 42},
            4,
            1,
            r"mlp\.gate_up_proj\.weight: part 'gate': 42 units of 1 .* tp may be one of 1, 2, 3, 6",
        ),
        ({"vocab_size": 63}, 2, 1, r"lm_head\.weight: part 'vocab': 63 units of 1 .* 1, 3, 7, 9"),
        ({}, 1, 4, r"3 layers do not divide over pp=4; pp may be 1 to 3$"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_sizes_that_would(
    changes: Config, tp: int, pp: int, message: str
) -> None:
    model = registry.read(case("llama").config | changes).build()
    with pytest.raises(GraphError, match=message):
        trace(model, max_context=8, mesh=Mesh(tp=tp, pp=pp))


def test_stages_are_as_long_as_they_are_said_to_be() -> None:
    model = registry.read(case("llama").config).build()
    held = []
    for mesh in Mesh(pp=2, stages=(2, 1)).ranks():
        graph = trace(model, max_context=8, mesh=mesh)
        keys = {n.op.key for n in graph.find(Weight) if isinstance(n.op, Weight)}
        held.append([i for i in range(3) if f"model.layers.{i}.mlp.down_proj.weight" in keys])
    assert held == [[0, 1], [2]]
    with pytest.raises(GraphError, match=r"stages \[2, 2\] hold 4 layers, the model has 3"):
        trace(model, max_context=8, mesh=Mesh(pp=2, stages=(2, 2)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tp": 0}, "tp is 0, expected at least 1"),
        ({"pp": -1}, "pp is -1, expected at least 1"),
        ({"tp": 2, "tp_rank": 2}, "tp_rank is 2, expected 0 to 1"),
        ({"pp": 2, "pp_rank": -1}, "pp_rank is -1, expected 0 to 1"),
        ({"pp": 2, "stages": (1, 2, 3)}, r"stages \[1, 2, 3\] are not 2 stages .* pp=2"),
        ({"pp": 2, "stages": (3, 0)}, r"stages \[3, 0\] are not 2 stages of a layer or more"),
    ],
)
def test_a_mesh_has_the_ranks_it_says(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Mesh(**fields)
