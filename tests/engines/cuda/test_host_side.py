"""All of the cuda engine but its kernels, on a double of the device: CI has no GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.engines import cuda
from paddock.engines.cuda.buckets import Buckets, sizes
from paddock.engines.cuda.fused import FusedLinear, ProjectedAttention
from paddock.engines.cuda.memory_plan import ALIGNMENT, Lifetime, plan
from paddock.engines.cuda.session import CUDASession
from paddock.engines.protocol import BuildError, Choices
from paddock.graph import Array, DType, Graph, use_graph
from paddock.graph import ops as F
from paddock.graph.tensor import TOKENS
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.engines.cuda.host_device import HostDevice
from tests.models.bound_arrays import BoundArrays
from tests.models.expected_logits import golden
from tests.models.parity_cases import CASES, CHARACTERISTIC, case
from tests.models.play import (
    chunks,
    decode,
    play,
    relative_error,
    step_inputs,
    together,
    whole,
)


def opened(name: str, device: HostDevice | None = None, **options: Any) -> CUDASession:
    one = case(name)
    model = registry.read(one.config).build()
    graph = trace(model, max_context=one.max_context)
    return cuda.build(graph, {}).open(
        BoundArrays(model, one.checkpoint()),
        {"block_size": 4, **options},
        device=device or HostDevice(),
    )


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str) -> None:
    """Through fusion, the memory plan, padding and replayed captures."""
    session = opened(name)
    lengths = [len(ids) for ids in case(name).sequences]
    for seed, steps in enumerate(
        (
            whole(lengths),
            together(lengths),
            decode(lengths, prompt=7),
            chunks(lengths, np.random.default_rng(5)),
        )
    ):
        found = play(session, case(name).sequences, steps, np.random.default_rng(seed))
        assert relative_error(found, golden(name)) < 2e-5
    device = session.device
    assert isinstance(device, HostDevice)
    assert device.captures > 0
    session.close()


@pytest.mark.parametrize("name", CHARACTERISTIC)
def test_what_the_passes_leave(name: str) -> None:
    """Every product and every attention of the zoo is fused with what stands around it."""
    one = case(name)
    graph = cuda.build(
        trace(registry.read(one.config).build(), max_context=one.max_context), {}
    ).graph
    kinds = [type(n.op) for n in graph.nodes if not isinstance(n.op, F.Source | F.Reshape)]
    layers = one.config["num_hidden_layers"]
    assert kinds.count(ProjectedAttention) == layers
    assert kinds.count(FusedLinear) == 4 * layers + 1
    alone = set(kinds) - {ProjectedAttention, FusedLinear}
    assert alone <= {F.Gather, F.RotaryAngles}


def test_a_cache_of_e4m3_takes_a_quarter_and_is_a_little_off() -> None:
    exact, session = opened("llama"), opened("llama", cache_dtype="fp8")
    assert session.block_bytes * 4 == exact.block_bytes  # beside f32
    lengths = [len(ids) for ids in case("llama").sequences]
    found = play(session, case("llama").sequences, together(lengths), np.random.default_rng(1))
    assert 1e-4 < relative_error(found, golden("llama")) < 0.1
    session.close()


def test_tokens_feed_back_on_the_device() -> None:
    """Steps launched ahead, with tokens that the host does not know, choose the same ones."""
    session = opened("llama")
    prompt = case("llama").sequences[1][:7]
    ids = list(prompt)
    session.allocate_cache(8)
    expected = []
    for _ in range(6):
        batch = [(np.array(ids), 0, [5, 2, 7, 1])]
        logits = session.run(step_inputs(session, batch, np.array([len(ids) - 1])))
        expected.append(int(logits[0].argmax()))
        ids.append(expected[-1])

    session.allocate_cache(8)
    slot = np.array([3], np.int32)
    found = []
    session.choose(
        step_inputs(session, [(prompt, 0, [5, 2, 7, 1])], np.array([6])), Choices.greedy(slot)
    )
    for past in range(7, 12):
        unknown = np.array([-1 - 3], np.int64)
        step = step_inputs(session, [(unknown, past, [5, 2, 7, 1])], np.array([0]))
        session.choose(step, Choices.greedy(slot))
        found.append(int(session.chosen()[0]))
    found.append(int(session.chosen()[0]))
    assert found == expected
    session.close()


def test_no_more_steps_in_flight_than_buffers() -> None:
    session = opened("llama")
    session.allocate_cache(4)
    step = step_inputs(session, [(np.array([1, 2]), 0, [0])], np.array([1]))
    for _ in range(session.steps_in_flight):
        session.choose(step, Choices.greedy(np.array([0], np.int32)))
    with pytest.raises(BuildError, match="ask what was chosen first"):
        session.choose(step, Choices.greedy(np.array([0], np.int32)))
    session.close()


def test_nothing_waits_inside_a_step() -> None:
    """A captured step is one copy and one launch; results are read behind it."""
    device = HostDevice()
    session = opened("llama", device)
    session.allocate_cache(4)
    step = step_inputs(session, [(np.array([1]), 3, [0])], np.array([0]))
    for _ in range(3):
        session.choose(step, Choices.greedy(np.array([0], np.int32)))
        session.chosen()
    device.log.clear()
    session.choose(step, Choices.greedy(np.array([0], np.int32)))
    assert device.log == ["write", "launch", "read"]
    session.chosen()
    session.close()


@pytest.mark.parametrize(
    "quant", [F.Dequantize(DType.F32)], ids=["integers stay integers for products"]
)
def test_quantized_weights(quant: F.Dequantize) -> None:
    from paddock.graph import QuantFormat

    one = case("llama-tied")
    model = registry.read(one.config).build()
    quantize(model, QuantFormat(DType.I8))
    graph = cuda.build(trace(model, dtype=quant.dtype, max_context=one.max_context), {}).graph
    session = cuda.CUDAEngine(graph).open(
        BoundArrays(model, one.checkpoint()), {"block_size": 4}, device=HostDevice()
    )
    lengths = [len(ids) for ids in one.sequences]
    found = play(session, one.sequences, together(lengths), np.random.default_rng(1))
    assert 1e-4 < relative_error(found, golden("llama-tied")) < 0.1
    session.close()


def test_an_op_without_a_lowering_is_named() -> None:
    class NotOfCuda(F.Scale):
        """An op that no engine has."""

    with use_graph(Graph()) as graph:
        x = F.input_tensor("token_ids", DType.I64, TOKENS)
        graph.outputs = (NotOfCuda(2.0)(F.cast(x, DType.F32)),)
    with pytest.raises(BuildError, match="cuda does not know the op not_of_cuda"):
        cuda.build(graph, {})


lifetimes = st.lists(
    st.builds(
        lambda first, more, nbytes: Lifetime(first, first + more, nbytes),
        st.integers(0, 30),
        st.integers(0, 8),
        st.integers(0, 5000),
    ),
    max_size=40,
)


@given(lifetimes)
def test_nothing_that_is_alive_is_overlapped(wanted: list[Lifetime]) -> None:
    made = plan(wanted)
    for i, a in enumerate(wanted):
        assert made.offsets[i] % ALIGNMENT == 0
        assert made.offsets[i] + a.nbytes <= made.nbytes
        for j, b in enumerate(wanted[:i]):
            apart = (
                made.offsets[i] + a.nbytes <= made.offsets[j]
                or made.offsets[j] + b.nbytes <= made.offsets[i]
            )
            assert apart or a.last < b.first or b.last < a.first


def test_memory_is_used_again() -> None:
    chain = [Lifetime(i, i + 1, 1000) for i in range(20)]
    assert plan(chain).nbytes <= 2 * 1024


@given(st.integers(0, 300), st.lists(st.integers(1, 90), max_size=20))
def test_buckets_hold_their_steps(singles: int, prompts: list[int]) -> None:
    new = [1] * singles + prompts or [1]
    starts = np.cumsum([0, *new]).astype(np.int32)
    found = Buckets(512, 2048).bucket(starts, len(new))
    leading = next((i for i, n in enumerate(new) if n > 1), len(new))
    assert found.tokens >= sum(new)
    assert found.sequences >= len(new)
    assert found.rows >= len(new)
    assert found.singles >= leading
    assert found.prompts >= len(new) - leading
    assert found.longest >= max(new)
    assert found.decodes == (sum(new) == len(new))


def test_little_of_a_large_step_is_padding() -> None:
    steps = sizes(8192)
    assert steps == sorted(set(steps))
    assert max(b / a for a, b in itertools.pairwise(steps) if a >= 64) <= 1.125
    assert len(steps) < 110


def test_weights_of_another_model_are_refused() -> None:
    one = case("llama")
    model = registry.read(one.config).build()
    other = replace(one, config=one.config | {"vocab_size": 32})
    graph = trace(model, max_context=8)
    weights = BoundArrays(registry.read(other.config).build(), other.checkpoint())
    with pytest.raises(BuildError, match=r"embed_tokens\.weight: the engine expects"):
        cuda.build(graph, {}).open(weights, {}, device=HostDevice())


def test_an_engine_is_read_back(tmp_path: Any) -> None:
    one = case("qwen3")
    graph = trace(registry.read(one.config).build(), max_context=one.max_context)
    built = cuda.build(graph, {})
    built.save(tmp_path)
    assert cuda.load(tmp_path).graph.dump() == built.graph.dump()
    (tmp_path / "graph.json").write_text("{", "utf-8")
    with pytest.raises(BuildError, match="build the engine again"):
        cuda.load(tmp_path)


def test_choosing_on_the_device_is_the_samplers_own() -> None:
    """The definition that kernels are held to draws what the CPU's sampler draws."""
    from paddock.engines.choosing import ChooseTokens
    from paddock.runtime.sampling.sampler import SequenceSampler, sample
    from paddock.runtime.sampling.sampling_params import SamplingParams

    random = np.random.default_rng(3)
    agreed = total = 0
    for top_k in (0, 1, 7, 60):
        for top_p in (1.0, 0.8, 0.2):
            for min_p in (0.0, 0.1):
                logits: Array = (3 * random.standard_normal((6, 300))).astype(np.float32)
                params = SamplingParams(temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
                samplers = [
                    SequenceSampler(
                        params.model_copy(update={"seed": seed}),
                        prompt_token_ids=[],
                        vocab_size=300,
                    )
                    for seed in range(6)
                ]
                wanted = [token.token_id for token in sample(logits, samplers)]
                found, _ = ChooseTokens().compute(
                    logits,
                    np.full(6, 0.8, np.float32),
                    np.full(6, top_k, np.int32),
                    np.full(6, top_p, np.float32),
                    np.full(6, min_p, np.float32),
                    np.array([s.chance() for s in samplers]),
                    np.full(6, -1, np.int32),
                    np.zeros(1, np.int32),
                )
                agreed += sum(int(f) == w for f, w in zip(found, wanted, strict=True))
                total += 6
    assert agreed == total


def test_a_plugin_brings_its_own_lowering() -> None:
    """What an op gives for this engine is called with the device and the instruction."""
    from paddock.engines.cuda.device import Instruction
    from paddock.engines.cuda.lowering import emit

    called: list[tuple[Any, Instruction]] = []

    class Rescaled(F.Scale):
        lowerings: ClassVar[Mapping[str, Callable[..., Any]]] = {
            "cuda": lambda gpu, instruction: called.append((gpu, instruction))
        }

    with use_graph(Graph()) as graph:
        x = F.cast(F.input_tensor("token_ids", DType.I64, TOKENS), DType.F32)
        graph.outputs = (Rescaled(2.0)(x),)
    node = cuda.build(graph, {}).graph.nodes[-1]
    assert isinstance(node.op, Rescaled)
    one = Instruction(node.op, tuple(t.type for t in node.inputs), [], [])
    emit("the device", one)  # type: ignore[arg-type]
    assert called == [("the device", one)]
