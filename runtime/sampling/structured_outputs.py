"""What a text must be: the part of a request that a grammar is made of."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]


class StructuredOutputs(BaseModel):
    """Exactly one of these (names as vLLM's `StructuredOutputsParams`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    json_schema: dict[str, Any] | bool | Text | None = Field(default=None, alias="json")
    """A JSON schema, or the text of one: the text is JSON that is valid under it."""
    json_object: bool | None = None
    """True: any JSON object."""
    regex: Text | None = None
    """A regular expression that the whole text matches (Rust's `regex` syntax, no look-around)."""
    choice: tuple[Text, ...] | None = Field(default=None, min_length=1)
    """One of these texts."""
    grammar: Text | None = None
    """A context-free grammar in llguidance's form of Lark, beginning at `start`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [
            name
            for name in ("json_schema", "regex", "choice", "grammar")
            if getattr(self, name) is not None
        ]
        if self.json_object:
            given.append("json_object")
        if len(given) != 1:
            found = " and ".join(given).replace("json_schema", "json") or "none"
            raise ValueError(
                f"expected one of json, json_object, regex, choice and grammar, found {found}"
            )
        return self
