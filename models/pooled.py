"""The hidden states of a model that was made to write text, for embeddings (E5-Mistral, Qwen3)."""

from paddock.graph import GraphError, Module, Tensor
from paddock.layers import Step, VocabHead, read_rows


class Pooled(Module):
    """The one module of a causal model that is no vocabulary head, under its own name."""

    def __init__(self, model: Module) -> None:
        bodies = {
            name: child
            for name, child in model.children()
            if isinstance(child, Module) and not isinstance(child, VocabHead)
        }
        if len(bodies) != 1:
            raise GraphError(
                f"{type(model).__name__} consists of {', '.join(bodies) or 'nothing'} beside its"
                " vocabulary head, expected one module whose output can be pooled"
            )
        ((self._body, body),) = bodies.items()
        setattr(self, self._body, body)

    def forward(self, step: Step) -> Tensor:
        """Hidden states f32 [rows, hidden]."""
        return read_rows(getattr(self, self._body)(step), step)
