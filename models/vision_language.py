"""Configs of models that see: one of a text model and one of a vision tower in one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from paddock.graph import nearest
from paddock.models.config import ConfigError, ModelConfig
from paddock.models.images import ImageForm


@dataclass(frozen=True)
class Part:
    """A model inside another: what files leave out of its config is as transformers has it."""

    model: Any
    """Its class, or what is made of its config."""
    config: type[ModelConfig]
    defaults: Mapping[str, Any]


class VisionLanguageConfig(ModelConfig):
    """A text model's config and a vision tower's, each chosen by its `model_type`.

    A checkpoint may have no tower: a model of a `blind` config reads text alone.
    """

    text_config: ModelConfig
    vision_config: ModelConfig | None
    image_token_id: int = Field(ge=0)

    text_parts: ClassVar[Mapping[str, Part]]
    """By `model_type`; the first where a file says none."""
    tower: ClassVar[str] = "vision"
    """What the names of the tower's tensors have in them."""
    vision_parts: ClassVar[Mapping[str, Part]]

    @model_validator(mode="after")
    def _images_stand_for_a_token(self) -> Self:
        if self.image_token_id >= self.vocab_size:
            raise ValueError(
                f"image_token_id {self.image_token_id} is outside the vocabulary of"
                f" {self.vocab_size}"
            )
        return self

    @property
    def text_model(self) -> Any:
        """The text model's class."""
        return next(p.model for p in self.text_parts.values() if p.config is type(self.text_config))

    def vision_model(self) -> Any:
        """The tower, made."""
        kinds = self.vision_parts.values()
        found = next(part.model for part in kinds if part.config is type(self.vision_config))
        return found(self.vision_config)

    @property
    def image_form(self) -> ImageForm | None:
        """What images are to the model; None where it has no tower."""
        raise NotImplementedError

    def blind(self) -> Self:
        """The text model alone, of a checkpoint without a tower. Raises `ConfigError`."""
        raise ConfigError(f"{type(self).__name__}: the checkpoint has no vision tower")

    @property
    def vocab_size(self) -> int:
        return int(getattr(self.text_config, "vocab_size", 1))

    @property
    def longest(self) -> int | None:
        return self.text_config.longest

    @property
    def depth(self) -> int:
        return self.text_config.depth

    def cut(self, layers: int) -> Self:
        """The text model's first layers, behind the whole tower."""
        return self.model_copy(update={"text_config": self.text_config.cut(layers)})

    @classmethod
    def read(cls, data: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> Self:
        parts = {"text_config": cls.text_parts, "vision_config": cls.vision_parts}
        found = {
            name: _part(data, name, kinds, ignore)
            for name, kinds in parts.items()
            if name == "text_config" or data.get(name) is not None
        }
        # transformers ties where either says so.
        tied = any(getattr(c, "tie_word_embeddings", False) for c in found.values())
        tied = tied or data.get("tie_word_embeddings") is True
        own = {"tie_word_embeddings": True} if tied else {}
        read = super().read({**data, **found, **own}, ignore=ignore)
        return read if read.vision_config is not None else read.blind()


def _part(
    data: Mapping[str, Any], name: str, kinds: Mapping[str, Part], ignore: frozenset[str]
) -> ModelConfig:
    given = data.get(name) or {}
    if not isinstance(given, dict):
        raise ConfigError(f"config.json: {name}: expected an object")
    kind = given.get("model_type", next(iter(kinds)))
    if kind not in kinds:
        raise ConfigError(
            f"config.json: {name}.model_type is {str(kind)[:80]!r}, which this class is not built"
            f" with here{nearest(str(kind), kinds)}; known are {', '.join(kinds)}"
        )
    part = kinds[kind]
    said = {key: value for key, value in given.items() if value is not None}
    try:
        return part.config.read({**part.defaults, **said}, ignore=ignore)
    except ConfigError as error:
        message = str(error).removeprefix("config.json: ")
        raise ConfigError(f"config.json: {name}: {message}") from None
