"""The reference engine: saved, loaded, opened on the wrong weights, watched, and in every type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddock.engines import reference
from paddock.engines.protocol import BuildError, StepInputs
from paddock.engines.reference.evaluate import evaluate
from paddock.graph import Array, DType, Graph, GraphError, Mesh, Node, use_graph
from paddock.graph.ops import Attention, Linear, RMSNorm, input_tensor
from paddock.graph.tensor import TOKENS
from paddock.layers import trace
from paddock.models import registry
from tests.graph.dense_attention import dense
from tests.models.bound_arrays import BoundArrays
from tests.models.expected_logits import expected
from tests.models.opened import opened
from tests.models.parity_cases import Case, case
from tests.models.play import play, relative_error, step_inputs, whole


def traced(some: Case, dtype: DType = DType.F32, mesh: Mesh | None = None) -> Graph:
    model = registry.read(some.config).build()
    return trace(model, dtype=dtype, max_context=some.max_context, mesh=mesh)


def weights_of(some: Case, dtype: DType = DType.F32) -> BoundArrays:
    return BoundArrays(registry.read(some.config).build(), some.checkpoint(), dtype=dtype)


def test_a_saved_engine_is_the_engine(tmp_path: Path) -> None:
    some = case("mistral")
    engine = reference.build(traced(some), {})
    engine.save(tmp_path)
    again = reference.load(tmp_path)
    assert again.graph.dump(sources=True) == engine.graph.dump(sources=True)
    session = again.open(weights_of(some), {"block_size": 3})
    lengths = [len(ids) for ids in some.sequences]
    found = play(session, some.sequences, whole(lengths), np.random.default_rng(0))
    assert relative_error(found, expected("mistral")) < 2e-5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "damaged"),
        (b"\xff\xfe", "can't decode"),
        (b'{"schema": 99}', "graph schema 99, this version reads 1"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "graph.json").write_bytes(content)
    with pytest.raises(BuildError, match=rf"graph\.json: .*{message}.*; build the engine again"):
        reference.load(tmp_path)


class Wrong(BoundArrays):
    """Weights that have become another checkpoint's."""

    change = ""

    def whole(self, name: str) -> Array:
        array = super().whole(name)
        if name != "model.layers.1.mlp.down_proj.weight":
            return array
        return array[:-1] if self.change == "shape" else array.astype(np.float16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("shape", r"the engine expects f32\[64, 40\], the bound weights hold float32\[63, 40\]"),
        ("dtype", r"the engine expects f32\[64, 40\], the bound weights hold float16\[64, 40\]"),
    ],
)
def test_other_weights_are_refused(change: str, message: str) -> None:
    some = case("llama")
    weights = Wrong(registry.read(some.config).build(), some.checkpoint())
    weights.change = change
    with pytest.raises(BuildError, match=rf"^model\.layers\.1\.mlp\.down_proj\.weight: {message}"):
        reference.build(traced(some), {}).open(weights, {})


def test_a_session_says_its_sizes() -> None:
    some = case("llama")
    session = reference.build(traced(some, DType.BF16), {}).open(
        weights_of(some, DType.BF16), {"block_size": 8}
    )
    assert session.vocab_size == 64
    assert session.block_size == 8
    # 3 layers, keys and values, 8 tokens, 2 heads of 16, 2 bytes.
    assert session.block_bytes == 3 * 2 * 8 * 2 * 16 * 2
    default = reference.build(traced(some), {}).open(weights_of(some), {})
    assert default.block_size == 16


def test_a_step_before_the_cache_says_what_is_missing() -> None:
    some = case("llama")
    session = reference.build(traced(some), {}).open(weights_of(some), {})
    step = step_inputs(session, [(some.sequences[0], 0, [0, 1])], np.arange(1))
    with pytest.raises(
        GraphError, match=r"cache_blocks '.*key_cache' was not given by the runtime"
    ):
        session.run(step)
    session.allocate_cache(2)
    session.run(step)
    session.close()
    with pytest.raises(GraphError, match=r"was not given by the bound weights"):
        session.run(step)


def test_allocating_again_forgets_what_was_cached() -> None:
    some = case("llama")
    session = reference.build(traced(some), {}).open(weights_of(some), {})
    ids = some.sequences[0]
    for _ in range(2):
        session.allocate_cache(2)
        session.run(step_inputs(session, [(ids[:20], 0, [0, 1])], np.arange(1)))
        later = session.run(step_inputs(session, [(ids[20:], 20, [0, 1])], np.arange(9)))
        assert relative_error([later], [expected("llama")[0][20:]]) < 2e-5
    session.allocate_cache(2)  # the keys of the first 20 are gone
    wrong = session.run(step_inputs(session, [(ids[20:], 20, [0, 1])], np.arange(9)))
    assert relative_error([wrong], [expected("llama")[0][20:]]) > 1e-2


def test_an_observer_sees_every_node_in_order() -> None:
    some = case("qwen3")
    session = reference.build(traced(some), {}).open(weights_of(some), {})
    session.allocate_cache(2)
    seen: list[Node] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def observe(node: Node, values: tuple[Array, ...]) -> None:
        seen.append(node)
        assert len(values) == len(node.outputs)
        for tensor, value in zip(node.outputs, values, strict=True):
            assert value.dtype == tensor.dtype.numpy
            assert value.ndim == tensor.type.rank
        shapes[f"{node.path}:{node.op.name}"] = values[0].shape

    step = step_inputs(session, [(some.sequences[0], 0, [0, 1])], np.array([3, 5]))
    (logits,) = session.outputs(step, observe)
    assert seen == session.graph.nodes
    assert shapes["model.layers.2.self_attn:attention"] == (29, 4, 32)
    assert shapes["model.norm:rms_norm"] == (2, 64)
    assert logits.shape == (2, 64)


def test_values_are_dropped_after_their_last_use() -> None:
    """A step holds a few tensors at a time, not every one it makes."""
    import tracemalloc

    graph = Graph()
    with use_graph(graph):
        x = input_tensor("x", DType.F32, TOKENS)
        source = x.node.op
        for _ in range(50):
            x = x * 1.01
        graph.outputs = (x,)
    value = np.ones(2**18, np.float32)
    tracemalloc.start()
    evaluate(graph, {source: value})  # type: ignore[dict-item]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * value.nbytes


@pytest.mark.parametrize(("dtype", "tolerance"), [(DType.BF16, 0.08), (DType.F16, 0.01)])
def test_low_precision_stays_near(dtype: DType, tolerance: float) -> None:
    some = case("llama-biases")
    session = reference.build(traced(some, dtype), {}).open(weights_of(some, dtype), {})
    lengths = [len(ids) for ids in some.sequences]
    found = play(session, some.sequences, whole(lengths), np.random.default_rng(0))
    error = relative_error(found, expected("llama-biases"))
    assert 1e-5 < error < tolerance  # and it is not f32 in disguise


@pytest.mark.parametrize("stored", [DType.BF16, DType.F16, DType.F32, DType.F64])
def test_f64_reads_weights_of_any_float_type(stored: DType) -> None:
    some = case("llama-biases")
    session = reference.build(traced(some, DType.F64), {}).open(weights_of(some, stored), {})
    lengths = [len(ids) for ids in some.sequences]
    found = play(session, some.sequences, whole(lengths), np.random.default_rng(0))
    tolerance = {DType.BF16: 0.06, DType.F16: 0.01}.get(stored, 5e-6)
    assert relative_error(found, expected("llama-biases")) < tolerance


def test_f64_is_f64_throughout() -> None:
    some = case("smollm3-windows")
    session = opened(some, "reference", dtype=DType.F64)
    session.allocate_cache(8)
    assert session.block_bytes == 5 * 2 * session.block_size * 2 * 16 * 8
    made: dict[int, Array] = {}
    attended: list[Node] = []

    def observe(node: Node, values: tuple[Array, ...]) -> None:
        made.update({id(t): v for t, v in zip(node.outputs, values, strict=True)})
        if isinstance(node.op, Attention):
            attended.append(node)
        if isinstance(node.op, Attention | RMSNorm | Linear):
            assert values[0].dtype == np.float64

    step = step_inputs(session, [(some.sequences[1], 0, range(3))], np.arange(2))
    session.outputs(step, observe)  # type: ignore[attr-defined]
    assert len(attended) == 5
    for node in attended:  # keys and values come back from the cache as they went in
        assert isinstance(node.op, Attention)
        q, k, v = (made[id(t)] for t in node.inputs[:3])
        np.testing.assert_allclose(
            made[id(node.outputs[0])], dense(node.op, q, k, v), rtol=1e-12, atol=1e-12
        )


def test_ranks_need_a_communicator() -> None:
    some = case("llama")
    mesh = Mesh(tp=2)
    model = registry.read(some.config).build()
    session = reference.build(traced(some, mesh=mesh), {}).open(
        BoundArrays(model, some.checkpoint(), mesh), {}
    )
    session.allocate_cache(2)
    step = step_inputs(session, [(some.sequences[1], 0, [0])], np.arange(1))
    with pytest.raises(
        GraphError, match=r"^model\.layers\.0\.self_attn\.o_proj .*all_reduce needs a communicator"
    ):
        session.run(step)


def test_an_input_that_no_step_has_is_refused_on_opening() -> None:
    graph = Graph()
    with use_graph(graph):
        graph.outputs = (input_tensor("images", DType.F32, TOKENS, 4) * 2.0,)
    with pytest.raises(BuildError, match="the step has no array 'images'; it has token_ids, posit"):
        reference.build(graph, {}).open(weights_of(case("llama")), {})


def test_a_broken_graph_is_not_built() -> None:
    graph = traced(case("llama"))
    graph.outputs = ()
    with pytest.raises(BuildError, match="the graph has no outputs"):
        reference.build(graph, {})


def test_a_step_holds_what_the_contract_says() -> None:
    some = case("llama")
    session = opened(some, "reference")
    ids = some.sequences[0]
    step = step_inputs(session, [(ids[:5], 9, range(9)), (ids[:2], 0, [9])], np.array([4, 6]))
    assert isinstance(step, StepInputs)
    assert step.sequence_starts.tolist() == [0, 5, 7]
    assert step.past_lengths.tolist() == [9, 0]
    assert step.positions.tolist() == [9, 10, 11, 12, 13, 0, 1]
    assert step.block_table.tolist() == [0, 1, 2, 3, 9]  # 14 tokens in blocks of 4, then 2
    assert step.block_starts.tolist() == [0, 4, 5]
