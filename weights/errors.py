"""What goes wrong between a checkpoint and a model's slots."""

from paddock.graph.errors import PaddockError


class WeightError(PaddockError):
    """A checkpoint cannot be had, cannot be read, or does not fit the model."""
