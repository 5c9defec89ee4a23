"""Reading config.json: strict about what changes the mathematics, silent about what does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from paddock.graph import GraphError, PaddockError, nearest
from paddock.layers import ACTIVATIONS
from paddock.layers.rotary import ROTARY_TYPES, RotaryScaling


class ConfigError(PaddockError):
    """A checkpoint's config.json describes something that cannot be built."""


# Fields that do not change what a trained model computes.
IGNORED: frozenset[str] = frozenset(
    (
        # what the checkpoint is, who wrote it, how it was stored
        "_commit_hash",
        "_name_or_path",
        "_num_labels",
        "architectures",
        "auto_map",
        "dtype",
        "id2label",
        "is_llama_config",  # SmolLM2's trainer: that it is
        "label2id",
        "model_type",
        "name_or_path",
        "problem_type",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "transformers_weights",
        "unsloth_fixed",
        "unsloth_version",
        # token ids: the tokenizer and the generation config are asked
        "bos_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "cls_token_id",
        # what is made of scores: the runtime reads these
        "sbert_ce_default_activation_function",
        "sentence_transformers",
        # training
        "attention_dropout",
        "attention_probs_dropout_prob",
        "embd_pdrop",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout",
        "hidden_dropout_prob",
        "initializer_range",
        "keys_to_ignore_at_inference",
        "neftune_noise_alpha",
        "pretraining_tp",  # how a trainer cut its matrices; the product is the same
        "resid_pdrop",
        "router_aux_loss_coef",
        # how transformers runs a model
        "_attn_implementation",
        "_attn_implementation_autoset",
        "attn_implementation",
        "chunk_size_feed_forward",  # rows at a time; the result is the same
        "max_sequence_length",  # Llama 1: max_position_embeddings again
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "tf_legacy_loss",
        "torchscript",
        "use_bfloat16",
        "use_cache",
        "use_return_dict",
        # generation settings that older versions of transformers kept here
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "prefix",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    )
)

# Bounds that no model comes near, so that a damaged file cannot ask for absurd work: the largest
# open models have 126 layers, 16k wide, and vocabularies of 262k.
Layers = Annotated[int, Field(gt=0, le=1000)]
Heads = Annotated[int, Field(gt=0, le=2**14)]
Size = Annotated[int, Field(gt=0, le=2**22)]
Context = Annotated[int, Field(gt=0, le=2**31)]
Eps = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


def _known_activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"{_shown(name[:80])} is none of {', '.join(ACTIVATIONS)}")
    return name


ActivationName = Annotated[str, AfterValidator(_known_activation)]
LayerTypes = Annotated[tuple[str, ...], Field(strict=False)]


Task = Literal["generate", "embed", "classify"]
"""What a model is asked for: text, vectors, or scores."""
Reads = Literal["first", "all"]
"""Of which tokens of a sequence a classifier reads the hidden state."""


class ModelConfig(BaseModel):
    """Fields are named as in config.json; sizes are the whole model's, not one rank's.

    A subclass lists what its architecture reads, with the defaults of transformers; `ignored` adds
    names that do not matter to it; `synonyms` holds the family's own names for fields which others
    have under the usual one (n_embd: hidden_size). Values must have the field's own type: "4096" is
    no size.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
    ignored: ClassVar[frozenset[str]] = frozenset()
    synonyms: ClassVar[Mapping[str, str]] = {}
    dequantizes: ClassVar[frozenset[str]] = frozenset()  # methods whose tensors its map can read

    @property
    def longest(self) -> int | None:
        """Tokens of the longest sequence that the model was trained for, where it says so."""
        found = getattr(self, "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @property
    def longest_source(self) -> int | None:
        """Places of the longest source that an encoder-decoder reads; None: as `longest`."""
        return None

    @property
    def depth(self) -> int:
        """How many layers `cut` counts."""
        return int(getattr(self, "num_hidden_layers", 1))

    def cut(self, layers: int) -> Self:
        """The config of the model's first layers alone."""
        return self.model_copy(update={"num_hidden_layers": layers})

    @classmethod
    def read(cls, data: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> Self:
        """The config from config.json's contents.

        `ignore` names further fields that the caller knows not to matter. A field that is null,
        false or empty and unknown is off, whatever it would do. Raises `ConfigError`.
        """
        if data.get("quantization_config") and "quantization_config" not in ignore:
            settings = data["quantization_config"]
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            if not isinstance(method, str) or method not in cls.dequantizes:
                raise ConfigError(
                    "config.json: the checkpoint is quantized"
                    f" ({_shown(method or 'unknown method')}); use the original checkpoint and let"
                    " `quant=int8` or `quant=int4` quantize it"
                )
        known: dict[str, Any] = {}
        for given_name, value in data.items():
            name = cls.synonyms.get(given_name, given_name)
            if name in known and value is not None and known[name] != value:
                raise ConfigError(
                    f"config.json: {given_name} is {_shown(value)}, which {name} gives as"
                    f" {_shown(known[name])} under another name; remove one of the two"
                )
            if name in cls.model_fields:
                if value is not None or _takes_null(cls.model_fields[name]):
                    known[name] = value
            elif name == "quantization_config" and cls.dequantizes:
                continue
            elif name not in IGNORED | cls.ignored | ignore and not _is_off(value):
                raise ConfigError(
                    f"config.json: {cls.__name__} does not know the field {_shown(name)} ="
                    f" {_shown(value)}, which may change what the model"
                    f" computes{nearest(name, cls.model_fields)}; where it does not, say so with"
                    f" `ignore_config=[{name:.80}]`"
                )
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            # A default that is worked out from a missing field is no mistake of its own.
            errors = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
            first = errors[0]
            field = ".".join(map(str, first["loc"])) or "values"
            given = "" if first["type"] == "missing" else f", found {_shown(first['input'])}"
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            message = first["msg"].removeprefix("Value error, ")
            if not first["loc"]:
                given = ""  # the message of a check over several fields names them itself
            raise ConfigError(f"config.json: {field}: {message}{given}{more}") from None


class EncoderDecoderConfig(ModelConfig):
    """A config of an encoder, of `num_hidden_layers`, and a decoder."""

    num_hidden_layers: Layers
    num_decoder_layers: Layers

    @property
    def depth(self) -> int:
        return max(self.num_hidden_layers, self.num_decoder_layers)

    def cut(self, layers: int) -> Self:
        return self.model_copy(
            update={
                "num_hidden_layers": min(layers, self.num_hidden_layers),
                "num_decoder_layers": min(layers, self.num_decoder_layers),
            }
        )


class LabelledConfig(ModelConfig):
    """A config of models that may have a classifier: what its outputs are called."""

    id2label: dict[str, str] | None = None
    num_labels: Size | None = None
    tie_word_embeddings: bool = True  # of the head that guesses masked tokens, which is not read

    @model_validator(mode="after")
    def _labels_are_numbered(self) -> Self:
        names = self.id2label
        if names is not None and sorted(names) != sorted(map(str, range(len(names)))):
            raise ValueError(f"id2label has the keys {_shown(list(names))}, expected 0, 1, 2, ...")
        if names is not None and self.num_labels not in (None, len(names)):
            raise ValueError(f"id2label names {len(names)} labels, num_labels is {self.num_labels}")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the outputs; two without a name where the file says nothing."""
        if self.id2label is not None:
            return tuple(self.id2label[str(i)] for i in range(len(self.id2label)))
        return tuple(f"LABEL_{i}" for i in range(self.num_labels or 2))


def nested(config: type[ModelConfig]) -> Callable[[Any], Any]:
    """For a field that is an object in config.json: its contents read as strictly."""
    return lambda given: config.read(given) if isinstance(given, Mapping) else given


def _takes_null(field: FieldInfo) -> bool:
    """Whether null is a value of the field's own, not only "as if it were not there"."""
    return type(None) in get_args(field.annotation)


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ([], {}, "")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_heads(hidden_size: int, heads: int, kv_heads: int | None = None) -> None:
    """Raise `ValueError` unless the hidden size is whole heads, which share keys evenly."""
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}"
        )
    if kv_heads is not None and heads % kv_heads:
        raise ValueError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )


def check_layers(layer_types: tuple[str, ...] | None, layers: int, window: int | None) -> None:
    """Raise `ValueError` unless `layer_types` names, for each layer, an attention there is."""
    if layer_types is None:
        return
    if len(layer_types) != layers:
        raise ValueError(f"layer_types has {len(layer_types)} entries for {layers} layers")
    for layer, kind in enumerate(layer_types):
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(
                f"layer_types: layer {layer} is {kind[:80]!r}, expected 'full_attention' or"
                " 'sliding_attention'"
            )
        if kind == "sliding_attention" and window is None:
            raise ValueError(
                f"layer_types: layer {layer} is 'sliding_attention', but sliding_window and"
                " use_sliding_window say that there is no window"
            )


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

    Files of the years between have both, and must say the same. Raises `ValueError` naming the
    field, for pydantic to report.
    """
    given: dict[str, Any] = {}
    sources = {
        "rope_theta": {} if theta is None else {"rope_theta": theta},
        "rope_scaling": _with_type(legacy, "rope_scaling"),
        "rope_parameters": _with_type(parameters, "rope_parameters"),
    }
    said: dict[str, str] = {}
    for source, values in sources.items():
        for name, value in values.items():
            if name in given and given[name] != value:
                raise ValueError(
                    f"{source} gives {name} {_shown(value)}, {said[name]} {_shown(given[name])};"
                    " remove one of the two"
                )
            given[name], said[name] = value, source
    kind = given.pop("rope_type", "default")
    if kind not in ROTARY_TYPES:
        raise ValueError(f"rope_type {_shown(kind)} is none of {', '.join(ROTARY_TYPES)}")
    given.setdefault("rope_theta", default_theta)
    if partial_rotary_factor is not None:
        given.setdefault("partial_rotary_factor", partial_rotary_factor)
    given.setdefault("max_position_embeddings", max_position_embeddings)
    if kind in ("llama3", "yarn", "longrope"):
        given.setdefault("original_max_position_embeddings", max_position_embeddings)
    known = set(RotaryScaling.__dataclass_fields__)
    for name in given:
        if name not in known:
            raise ValueError(
                f"{said[name]}: unknown field {_shown(name)} ="
                f" {_shown(given[name])}{nearest(name, known)}"
            )
    try:
        return RotaryScaling(
            rope_type=kind, **{name: _rope_value(name, value) for name, value in given.items()}
        )
    except GraphError as error:
        raise ValueError(f"rope_parameters: {error}") from None


def rotary_of_kind(parameters: Mapping[str, Any] | None, kind: str) -> dict[str, Any] | None:
    """The `rope_parameters` of one kind of layer, where they are given for each kind apart."""
    if parameters is None:
        return None
    apart = {"full_attention", "sliding_attention"}
    if not apart & parameters.keys():
        return dict(parameters) if kind == "full_attention" else None
    found = parameters.get(kind)
    if not isinstance(found, dict | None) or parameters.keys() - apart:
        raise ValueError(f"rope_parameters: {_shown(dict(parameters))} are not of kinds of layers")
    return found


def _with_type(values: Mapping[str, Any] | None, source: str) -> dict[str, Any]:
    """What is given, with `type` under its newer name and without what only tells the history."""
    given = {k: v for k, v in (values or {}).items() if v is not None and k != "finetuned"}
    older = given.pop("type", None)
    kind = given.setdefault("rope_type", older) if older is not None else given.get("rope_type")
    if older is not None and older != kind:
        raise ValueError(f"{source}: type {_shown(older)} and rope_type {_shown(kind)} differ")
    if kind is not None and not isinstance(kind, str):
        raise ValueError(f"{source}: rope_type {_shown(kind)} is no text")
    return given


def _rope_value(name: str, value: Any) -> Any:
    """The value as its field has it, or `ValueError`."""
    if name == "truncate":
        if isinstance(value, bool):
            return value
        raise ValueError(f"rope_parameters: truncate is {_shown(value)}, expected true or false")
    if name in ("short_factor", "long_factor"):
        if isinstance(value, list) and len(value) <= 2**16:
            return tuple(_number(name, v) for v in value)
        raise ValueError(f"rope_parameters: {name} is {_shown(value)}, expected a list of numbers")
    number = _number(name, value)
    if not name.endswith("max_position_embeddings"):
        return number
    if number != int(number):
        raise ValueError(f"rope_parameters: {name} is {number}, expected a whole number")
    return int(number)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30:
        raise ValueError(f"rope_parameters: {name} is {_shown(value)}, expected a number")
    return float(value)
