"""Reading config.json: strict about what changes the mathematics, silent about what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from paddock.graph import PaddockError, nearest
from paddock.layers.rotary import REQUIRED, ROTARY_TYPES, RotaryScaling


class ConfigError(PaddockError):
    """A checkpoint's config.json describes something that cannot be built."""


# Fields that do not change what a trained model computes: bookkeeping, training, generation.
IGNORED: frozenset[str] = frozenset(
    (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "auto_map",
        "bos_token_id",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "keys_to_ignore_at_inference",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",  # how a trainer cut its matrices; the product is the same
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    )
)


class ModelConfig(BaseModel):
    """Fields are named as in config.json; sizes are the whole model's, not one rank's.

    A subclass lists what its architecture reads; `ignored` adds names that do not matter to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    ignored: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def read(cls, data: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> Self:
        """The config from config.json's contents.

        `ignore` names further fields that the caller knows not to matter. A field that is null or
        false and unknown is off, whatever it would do. Raises `ConfigError`.
        """
        skipped = IGNORED | cls.ignored | ignore
        if data.get("quantization_config") and "quantization_config" not in ignore:
            method = dict(data["quantization_config"]).get("quant_method", "unknown")
            raise ConfigError(
                f"config.json: the checkpoint is quantized ({method}); use the original checkpoint"
                " and let `quant=int8` or `quant=int4` quantize it"
            )
        known = {k: v for k, v in data.items() if k in cls.model_fields and v is not None}
        for name, value in data.items():
            if name in known or name in skipped or value is None or value is False:
                continue
            if name in cls.model_fields:
                continue
            raise ConfigError(
                f"config.json: {cls.__name__} does not know the field {name!r} = {value!r}, which"
                f" may change what the model computes{nearest(name, cls.model_fields)}; where it"
                f" does not, say so with `ignore_config=[{name}]`"
            )
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "values"
            found = f", found {first['input']!r}" if first["type"] != "missing" and field else ""
            more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
            message = first["msg"].removeprefix("Value error, ")
            raise ConfigError(f"config.json: {field}: {message}{found}{more}") from None


def rotary_scaling(
    parameters: Mapping[str, Any] | None,
    legacy: Mapping[str, Any] | None,
    *,
    theta: float | None,
    default_theta: float,
    max_position_embeddings: int,
    partial_rotary_factor: float | None = None,
) -> RotaryScaling:
    """From `rope_parameters`, or from the older `rope_theta` with `rope_scaling`.

    Raises `ValueError` naming the field, for pydantic to report.
    """
    given = dict(legacy or {}) | dict(parameters or {})
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if kind not in ROTARY_TYPES:
        raise ValueError(f"rope_type {kind!r} is none of {', '.join(ROTARY_TYPES)}")
    given.setdefault("rope_theta", theta if theta is not None else default_theta)
    if partial_rotary_factor is not None:
        given.setdefault("partial_rotary_factor", partial_rotary_factor)
    given.setdefault("max_position_embeddings", max_position_embeddings)
    if kind in ("llama3", "yarn", "longrope"):
        given.setdefault("original_max_position_embeddings", max_position_embeddings)
    known = set(RotaryScaling.__dataclass_fields__)
    unknown = {k for k, v in given.items() if k not in known and v is not None}
    if unknown:
        name = min(unknown)
        raise ValueError(f"rope_parameters: unknown field {name!r}{nearest(name, known)}")
    for name in REQUIRED[kind]:
        if given.get(name) is None:
            raise ValueError(f"rope_parameters: rope_type {kind!r} needs {name!r}")
    for name in ("short_factor", "long_factor"):
        if given.get(name) is not None:
            given[name] = tuple(map(float, given[name]))
    try:
        return RotaryScaling(rope_type=kind, **given)
    except TypeError as error:
        raise ValueError(f"rope_parameters: {error}") from None
