"""From an architecture and a recipe to the graph of a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch

from paddock.graph import DType, Graph, GraphError, Mesh, Module, QuantFormat, nearest
from paddock.graph.ops import Weight
from paddock.layers import quantize, trace
from paddock.models.registry import Architecture
from paddock.recipes import engine_kinds
from paddock.recipes.derive import ContextLength, context_length
from paddock.recipes.engine_kinds import STORED
from paddock.recipes.errors import RecipeError
from paddock.recipes.schema import QuantSettings, Recipe

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Traced:
    """A model as one rank computes it."""

    architecture: Architecture
    module: Module
    graph: Graph
    dtype: DType
    context: ContextLength
    mesh: Mesh

    @property
    def layers(self) -> int:
        return self.architecture.config.depth

    @property
    def weights(self) -> dict[str, Weight]:
        """What the graph reads, by the name under which it is stored."""
        return {n.op.key: n.op for n in self.graph.nodes if isinstance(n.op, Weight)}

    @property
    def alive(self) -> list[str]:
        """The slots that this rank computes with."""
        read = self.weights
        return [name for name, _ in self.module.named_parameters() if name in read]


def vocab_size(architecture: Architecture) -> int:
    """Token ids are below it."""
    return int(getattr(architecture.config, "vocab_size", 1))


def trace_graph(
    recipe: Recipe,
    architecture: Architecture,
    dtype: DType,
    *,
    mesh: Mesh | None = None,
    layers: int | None = None,
    quantized: bool = True,
) -> Traced:
    """The model quantized as the recipe says, as `mesh`'s rank computes it (None: one rank alone).

    `layers` cuts it down to its first ones; not `quantized`, its weights are those of the dtype.

    Raises `RecipeError`, or `GraphError` where the model does not divide over the mesh.
    """
    if layers is not None:
        architecture = replace(architecture, config=architecture.config.cut(layers))
    context = context_length(recipe, architecture.config)
    module = architecture.build()
    if recipe.quant.weights != "none" and quantized:
        scale = engine_kinds.load(recipe.engine.name).CAPABILITIES.group_scale
        _quantize(module, recipe.quant, scale, whole=layers is None)
    mesh = mesh or Mesh()
    graph = trace(module, dtype=dtype, max_context=context.tokens, mesh=mesh)
    return Traced(architecture, module, graph, dtype, context, mesh)


def trace_ranks(recipe: Recipe, architecture: Architecture, dtype: DType) -> list[Traced]:
    """The model as each rank of the recipe's mesh computes it. Raises as `trace_graph` does."""
    shape = mesh_of(recipe)
    return [trace_graph(recipe, architecture, dtype, mesh=rank) for rank in shape.ranks()]


def mesh_of(recipe: Recipe) -> Mesh:
    """The shape of a replica's mesh. Raises `RecipeError`."""
    try:
        return Mesh(tp=recipe.mesh.tp, pp=recipe.mesh.pp, stages=recipe.mesh.stages)
    except GraphError as error:
        raise RecipeError(str(error)) from None


def _quantize(module: Module, quant: QuantSettings, scale: DType, *, whole: bool) -> None:
    names = [name for name, slot in module.named_parameters() if slot.quantizable]
    for pattern in quant.skip if whole else ():
        if not any(fnmatch(name, pattern) for name in names):
            raise RecipeError(
                f"quant.skip: {pattern!r} is none of the {len(names)} slots that are quantized"
                f"{nearest(pattern, names)}"
            )
    head = None if quant.head in ("same", "none") else _format(quant.head, quant.group, scale)
    skip = (*quant.skip, HEAD) if quant.head == "none" else quant.skip
    # In int8 a row's own scale is as fine as groups are, and what engines have kernels for.
    quantize(module, _format(quant.weights, quant.group, scale), head=head, skip=skip)


def _format(weights: str, group: int | None, group_scale: DType) -> QuantFormat:
    if weights == "int4":
        return QuantFormat(STORED[weights], group, group_scale)
    # e4m3's scales are of what a row's largest number over 448 is, which f16 may not reach.
    return QuantFormat(STORED[weights], scale=DType.F32 if weights == "fp8" else DType.F16)
