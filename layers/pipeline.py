"""A stack of blocks cut into pipeline stages."""

from paddock.graph import GraphError, ModuleList, Tensor, current_mesh
from paddock.graph import ops as F
from paddock.graph.module import M
from paddock.layers.step import Step


class Pipeline(ModuleList[M]):
    """Runs the blocks of this rank's stage.

    Off the first stage the input is replaced by what the stage before sent; off the last stage
    the output is a send. What a model computes outside its stage is then dead in the traced
    graph, and only Parameters that are alive are bound.
    """

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """x: [tokens, hidden] -> [tokens, hidden]."""
        mesh = current_mesh()
        if mesh.pp > len(self.items):
            raise GraphError(
                f"{len(self.items)} layers do not divide over pp={mesh.pp}; pp may be 1 to"
                f" {len(self.items)}"
            )
        if not mesh.is_first:
            x = F.receive(step.token_ids, x.dtype, x.shape[1:])
        for i in mesh.stage(len(self.items)):
            x = self.items[i](x, step)
        return x if mesh.is_last else F.send(x)
