"""What a checkpoint's sentence-transformers files say: how hidden states become a vector.

`modules.json` lists the modules in order; each has a folder with a config.json of its own. Without
that file a model is pooled by its mean, as sentence-transformers does it, or a causal model by its
last token, and not normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from paddock.graph.dtype import Array, DType
from paddock.graph.errors import nearest
from paddock.runtime.encoders.pooling import MODES
from paddock.runtime.strict_json import TokenizerError, first_problem, read_json, read_model
from paddock.weights import Checkpoint, WeightError

MODULES = "modules.json"
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The flags of older files, in the order in which their vectors are joined."""


@dataclass(frozen=True)
class Dense:
    """activation(W x + b), between pooling and normalisation."""

    weight: Array  # f32 [outputs, inputs]
    bias: Array | None
    tanh: bool

    def __call__(self, x: Array) -> Array:
        y = self.weight @ x
        y = y if self.bias is None else y + self.bias
        return np.tanh(y) if self.tanh else y


@dataclass(frozen=True)
class SentenceFiles:
    """How a text becomes a vector."""

    pooling: tuple[str, ...]
    """Names of `MODES`; the vectors of several are joined."""
    normalize: bool = False
    dense: tuple[Dense, ...] = ()
    include_prompt: bool = True
    """Whether a prompt's tokens count in pooling."""
    max_length: int | None = None
    """Tokens, special ones included, beyond which texts are cut."""
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    """What is put before a text, by the name of the purpose, e.g. `query`."""
    default_prompt: str | None = None


class _Module(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    path: str = ""
    type: str


def _as_tuple(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Pooling(BaseModel):
    model_config = ConfigDict(extra="allow")

    pooling_mode: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] | None = None
    include_prompt: Annotated[bool, Field(strict=True)] = True

    def modes(self) -> tuple[str, ...]:
        if self.pooling_mode is not None:
            return self.pooling_mode
        told = self.model_extra or {}
        return tuple(mode for flag, mode in _LEGACY.items() if told.get(flag) is True) or ("mean",)


class _DenseConfig(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    in_features: int
    out_features: int
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"
    module_input_name: str = "sentence_embedding"
    module_output_name: str | None = None
    use_residual: bool = False


class _Transformer(BaseModel):
    """sentence_bert_config.json."""

    model_config = ConfigDict(extra="ignore", strict=True)

    max_seq_length: Annotated[int, Field(gt=2)] | None = None
    do_lower_case: bool = False


class _Model(BaseModel):
    """config_sentence_transformers.json."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompts: dict[str, str | None] | None = None
    default_prompt_name: str | None = None


def read_sentence_files(folder: Path, *, causal: bool) -> SentenceFiles:
    """Read what there is. Raises `TokenizerError`, which names the file, for what is not known."""
    transformer = _read(folder / "sentence_bert_config.json", _Transformer) or _Transformer()
    model = _read(folder / "config_sentence_transformers.json", _Model) or _Model()
    prompts = {name: text or "" for name, text in (model.prompts or {}).items()}
    if model.default_prompt_name is not None and model.default_prompt_name not in prompts:
        raise TokenizerError(
            f"{folder / 'config_sentence_transformers.json'}: default_prompt_name is"
            f" {model.default_prompt_name!r}, which is none of {', '.join(prompts) or 'no'} prompts"
        )
    pooling: tuple[str, ...] = ("lasttoken",) if causal else ("mean",)
    include_prompt, normalize = True, False
    dense: list[Dense] = []
    for module in _modules(folder / MODULES):
        kind = module.type.rpartition(".")[2]
        place = _inside(folder, module.path)
        if kind == "Pooling":
            file = place / "config.json"
            config = read_model(file, _Pooling)
            pooling, include_prompt = config.modes(), config.include_prompt
            for mode in pooling:
                if mode not in MODES:
                    raise TokenizerError(
                        f"{file}: pooling_mode {mode[:80]!r} is none of"
                        f" {', '.join(MODES)}{nearest(mode, MODES)}"
                    )
        elif kind == "Dense":
            dense.append(_read_dense(place))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise TokenizerError(
                f"{folder / MODULES}: no module {kind[:80]!r} here; there are Transformer, Pooling,"
                " Dense and Normalize"
            )
        if normalize and kind == "Dense":
            raise TokenizerError(f"{folder / MODULES}: a Dense module stands behind Normalize")
    return SentenceFiles(
        pooling,
        normalize,
        tuple(dense),
        include_prompt,
        transformer.max_seq_length,
        transformer.do_lower_case,
        prompts,
        model.default_prompt_name,
    )


def activation_of(
    config: Mapping[str, Any], labels: int
) -> Literal["softmax", "sigmoid", "identity"]:
    """What turns a classifier's logits into scores, as its config.json says.

    A cross-encoder's own word comes first, then the problem's type; a single output is a score
    through a sigmoid, as sentence-transformers' `CrossEncoder` has it. Raises `TokenizerError`.
    """
    settings = config.get("sentence_transformers")
    said = settings.get("activation_fn") if isinstance(settings, dict) else None
    said = said or config.get("sbert_ce_default_activation_function")
    if said is not None:
        kind = str(said).rpartition(".")[2].lower()
        if kind in ("identity", "sigmoid", "softmax"):
            return cast(Literal["softmax", "sigmoid", "identity"], kind)
        raise TokenizerError(
            f"config.json: the activation of scores is {said!r:.80}, expected Identity, Sigmoid or"
            " Softmax"
        )
    problem = config.get("problem_type")
    if problem == "regression":
        return "identity"
    return "sigmoid" if labels == 1 or problem == "multi_label_classification" else "softmax"


def _modules(file: Path) -> list[_Module]:
    if not file.is_file():
        return []
    try:
        return TypeAdapter(list[_Module]).validate_python(read_json(file))
    except ValidationError as error:
        raise TokenizerError(f"{file}: {first_problem(error)}") from None


def _read_dense(place: Path) -> Dense:
    file = place / "config.json"
    config = read_model(file, _DenseConfig)
    activation = config.activation_function.rpartition(".")[2]
    if activation not in ("Tanh", "Identity"):
        raise TokenizerError(f"{file}: activation_function {activation[:80]!r} is not known here")
    names = (config.module_input_name, config.module_output_name or config.module_input_name)
    if config.use_residual or set(names) != {"sentence_embedding"}:
        raise TokenizerError(f"{file}: a Dense module of the plain kind is expected")
    try:
        tensors = Checkpoint.open(place).tensors
    except WeightError as error:
        raise TokenizerError(str(error)) from None
    wanted: dict[str, tuple[int, ...]] = {
        "linear.weight": (config.out_features, config.in_features)
    }
    if config.bias:
        wanted["linear.bias"] = (config.out_features,)
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != wanted:
        raise TokenizerError(f"{place}: expected the tensors {wanted}, found {found}")
    arrays = {
        name: tensor.read(tensor.whole).astype(DType.F32.numpy) for name, tensor in tensors.items()
    }
    return Dense(arrays["linear.weight"], arrays.get("linear.bias"), activation == "Tanh")


def _inside(folder: Path, path: str) -> Path:
    place = (folder / path).resolve()
    if not place.is_relative_to(folder.resolve()) or "\0" in path:
        raise TokenizerError(f"{folder / MODULES}: the path {path[:80]!r} leads out of the folder")
    return place


def _read(file: Path, model: type[Any]) -> Any:
    return read_model(file, model) if file.is_file() else None
