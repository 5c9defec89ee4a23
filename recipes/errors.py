"""The error of this room: a recipe, an override or the machine does not allow what was asked."""

from paddock.graph.errors import PaddockError


class RecipeError(PaddockError):
    """A recipe cannot be composed, or asks for what the engine or the machine does not have."""
