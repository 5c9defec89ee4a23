"""The symbolic graph: tensors, ops, slots, modules, and the mesh they are placed on."""

from paddock.graph.cuda_source import CudaSource, Launch
from paddock.graph.dtype import Array, DType
from paddock.graph.errors import GraphError, PaddockError, nearest
from paddock.graph.graph import Graph, current_graph, use_graph
from paddock.graph.mesh import Mesh, current_mesh, use_mesh
from paddock.graph.module import Module, ModuleList
from paddock.graph.op import Op
from paddock.graph.parameter import Cache, Parameter, Parts, QuantFormat, Shard, State
from paddock.graph.tensor import Dim, Node, Tensor, TensorType

__all__ = [
    "Array",
    "Cache",
    "CudaSource",
    "DType",
    "Dim",
    "Graph",
    "GraphError",
    "Launch",
    "Mesh",
    "Module",
    "ModuleList",
    "Node",
    "Op",
    "PaddockError",
    "Parameter",
    "Parts",
    "QuantFormat",
    "Shard",
    "State",
    "Tensor",
    "TensorType",
    "current_graph",
    "current_mesh",
    "nearest",
    "use_graph",
    "use_mesh",
]
