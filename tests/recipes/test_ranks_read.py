"""All ranks' shares together are the checkpoint, and no rank reads more than its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddock.graph import GraphError, Mesh, Parameter, Parts, Shard
from paddock.recipes import pipeline
from paddock.recipes.compose import compose
from paddock.recipes.tracing import trace_ranks
from paddock.weights import Checkpoint


@given(
    units=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    unit=st.integers(1, 4),
    tp=st.integers(1, 8),
    repeat=st.booleans(),
    axis=st.integers(0, 1),
)
def test_slices_of_all_ranks_are_the_tensor(
    units: list[int], unit: int, tp: int, repeat: bool, axis: int
) -> None:
    sizes = {f"part{i}": n * unit for i, n in enumerate(units)}
    parts = Parts(sizes, unit, repeat)
    shape = [5, 5]
    shape[axis] = parts.total
    slot = Parameter(tuple(shape), Shard(axis, parts))
    divides = all(n % tp == 0 or (repeat and tp % n == 0) for n in units)
    if not divides:
        with pytest.raises(GraphError, match="do not divide over tp="):
            slot.local_shape(Mesh(tp=tp))
        return
    for part, size in sizes.items():
        covered = np.zeros(size, int)
        for rank in Mesh(tp=tp).ranks():
            box = slot.local_slice(part, rank)
            assert box[1 - axis] == slice(0, 5)
            covered[box[axis]] += 1
            assert box[axis].stop - box[axis].start == parts.local(rank).sizes[part]
        copies = max(1, tp // (size // unit)) if repeat and (size // unit) % tp else 1
        assert (covered == copies).all()  # every row once, or as often as is declared


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (4, 1), (1, 3), (2, 2)])
def test_a_rank_reads_its_own_bytes(tp: int, pp: int) -> None:
    recipe = compose("demo", [f"mesh.tp={tp}", f"mesh.pp={pp}"], []).recipe
    checkpoint = pipeline.fetch(recipe)
    dtype = pipeline.compute_type(recipe, pipeline.config_json(checkpoint))
    ranks = trace_ranks(recipe, pipeline.read_architecture(recipe, checkpoint), dtype)
    read = 0
    for rank in ranks:
        binding = pipeline.prove_binding(rank, checkpoint, ranks)
        files = {
            tensor.file
            for slot in binding.slots.values()
            for part in slot.parts
            for tensor, _ in part.source.boxes(part.box)
            if tensor.file is not None
        }
        for name in binding.slots:
            binding.load(name)
        read += sum(file.bytes_read for file in files)
    tensors = Checkpoint.open(checkpoint.folder).tensors
    whole = sum(tensor.nbytes for tensor in tensors.values())
    # Norms are on every tensor-parallel rank; the tied head is read beside the embedding.
    norms = sum(t.nbytes for n, t in tensors.items() if "norm" in n) * (tp - 1)
    slots = dict(ranks[0].module.named_parameters())
    tied = sum(
        tensors["model.embed_tokens.weight"].nbytes * copies
        for name, copies in (("lm_head.weight", 1),)
        if name in slots and name not in tensors
    )
    embedding = slots["model.embed_tokens.weight"]
    repeated = 0 if embedding.shard else tensors["model.embed_tokens.weight"].nbytes * (tp - 1)
    assert read == pytest.approx(whole + norms + tied + repeated, rel=0.02)
