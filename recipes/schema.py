"""What a recipe says once it is composed: every key, its type, its unit and its default.

None means "derived": from the checkpoint (sampling), or from the model and the machine (limits;
`paddock.recipes.derive` has the rules).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from paddock.runtime.errors import RequestError
from paddock.runtime.sampling.sampling_params import SamplingParams
from paddock.runtime.server.settings import ServerSettings


def _one_name(value: object) -> object:
    """`plugins=my.module` is meant as a list of one; otherwise it would be read by letters."""
    return (value,) if isinstance(value, str) else value


Count = Annotated[int, Field(strict=True, gt=0)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Name = Annotated[str, Field(strict=True, min_length=1)]
# Of letters, digits, dots and dashes: it becomes an argument of other programs.
HostName = Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
Names = Annotated[tuple[Name, ...], BeforeValidator(_one_name)]
WeightFormat = Literal["none", "int8", "int4", "fp8"]


class Settings(BaseModel):
    """A group of keys: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EngineSettings(Settings):
    """Group `engine`: what compiles and runs the graph."""

    name: Name = "openvino"
    """A folder of `paddock.engines`."""
    threads: Count | None = None
    """Threads of a step; None: the physical cores that this process may use."""
    cache_dtype: Literal["auto", "f32", "f16", "bf16", "u8", "fp8"] = "auto"
    """Element type of cached keys and values; auto: the engine's choice for the dtype. fp8, on
    cuda, is e4m3 without a scale: what is beyond 448 becomes 448."""
    flavour: Literal["auto", "tensorrt", "tensorrt_rtx"] | None = None
    """tensorrt: the package that compiles; None, as auto: the first that is installed."""
    target: Names | None = None
    """tensorrt: GPUs to compile for, e.g. [sm80,sm89]; None, as auto: the machine's own, or all
    that run the dtype where it has none."""
    weights: Literal["external", "embedded", "refittable"] | None = None
    """tensorrt: fed to the plan (None, as external), or constants in it, which `paddock refit` can
    exchange where they are refittable."""
    precision: Literal["auto", "fp8"] | None = None
    """cuda: fp8 keeps the matrices of products as e4m3, made when the engine opens, and multiplies
    them with activations in e4m3; None, as auto: the dtype's."""
    memory_fraction: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    """cuda: of the GPU's memory, what this engine may take in all; None: all of it."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        own: dict[str, tuple[str, ...]] = {
            "tensorrt": ("flavour", "target", "weights"),
            "cuda": ("precision", "memory_fraction"),
        }
        for engine, keys in own.items():
            for key in keys:
                if getattr(self, key) is not None and self.name != engine:
                    raise ValueError(f"{key}: engine {self.name} has no such setting, {engine} has")
        return self


class QuantSettings(Settings):
    """Group `quant`: how the weights of matrix products are stored."""

    weights: WeightFormat = "none"
    group: Count | None = None
    """Neighbours along a matrix's input that share a scale; None: the whole row."""
    head: WeightFormat | Literal["same"] = "same"
    """The vocabulary head's own format, one scale a row; same: as `weights` and `group`."""
    skip: Names = ()
    """Shell patterns of slot names that are not quantized, e.g. `model.layers.0.*`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.weights == "none" and (self.group is not None or self.head not in ("same", "none")):
            raise ValueError("group and head mean something only with weights=int8, int4 or fp8")
        if self.weights == "fp8" and self.group is not None:
            raise ValueError("fp8 has one scale a row; leave out quant.group")
        if self.weights == "int4" and self.group is None:
            raise ValueError(
                "int4 needs a group: a scale for a whole row is too coarse; e.g. quant.group=32"
            )
        return self


class MeshSettings(Settings):
    """Group `mesh`: how many ranks share the model, and how many replicas there are."""

    tp: Count = 1
    """Tensor-parallel ranks: each holds a share of every layer."""
    pp: Count = 1
    """Pipeline stages: each holds some of the layers."""
    dp: Count = 1
    """Data-parallel replicas behind one endpoint, each of `tp` times `pp` ranks."""
    stages: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    """Layers of each pipeline stage, in order; None: as evenly as possible."""
    hosts: Annotated[tuple[HostName, ...], Field(min_length=1)] | None = None
    """Hosts on which Paddock starts the ranks, as many on each, in order; None: on this one."""
    start_timeout_s: Positive = 120.0
    """Seconds for all ranks to be there."""
    silence_timeout_s: Positive = 20.0
    """Seconds after which a rank that is not heard of is given up, and all others with it."""
    step_timeout_s: Positive = 600.0
    """Seconds after which a step that has not ended is given up, and all ranks with it."""


class LimitSettings(Settings):
    """Group `limits`: how much each replica takes on at once. None is derived."""

    max_context: Count | None = None
    """Tokens of the longest sequence, prompt and output; None: what the model was trained for."""
    max_sequences: Count | None = None
    """Sequences that a step runs together."""
    max_tokens_per_step: Count | None = None
    """Tokens of one step, decoded ones and prompt chunks together."""
    prefill_chunk: Count | None = None
    """Prompt tokens of one sequence in one step at most; None: whatever the step has room for."""
    cache_gib: Positive | None = None
    """GiB of cached keys and values; None: from the memory that is free when the engine opens."""
    max_queued_requests: Count | None = None
    """Requests that may wait; more are refused."""
    max_queued_tokens: Count | None = None
    """Prompt tokens that may wait; more are refused."""
    max_prompt_logit_rows: Count = 128
    """Logit rows that a step spends on prompt log-probabilities at most."""
    aging_s: Positive = 10.0
    """One level of priority is worth as much as having arrived this many seconds earlier."""


class SamplingSettings(Settings):
    """Group `sampling`: defaults of requests. None: generation_config.json's, else neutral.

    Bounds are those of `SamplingParams`.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None
    stop: Names = ()

    @model_validator(mode="before")
    @classmethod
    def _within_bounds(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = {k: v for k, v in data.items() if k in cls.model_fields and v is not None}
            try:
                SamplingParams(**known)
            except RequestError as error:  # names the field and the bound in one line
                raise ValueError(str(error).removeprefix("sampling parameters: ")) from None
        return data

    def given(self) -> dict[str, Any]:
        """The settings that the recipe makes itself."""
        return {k: v for k, v in self if v is not None and v != ()}


class Recipe(Settings):
    """A model, an engine and how they meet: all that `paddock.recipes.pipeline` works from."""

    name: Name
    """The recipe's config name; set by `compose`."""
    summary: Text = ""
    """One line for `paddock list`."""
    family: Text = ""
    """E.g. "Llama 3.2"."""
    size: Text = ""
    """Parameters, e.g. "1.2B"."""
    gated: Flag = False
    """The hub asks for a token of somebody who accepted the licence."""
    checkpoint: Name
    """`demo` (bundled), a folder, or a hub repository `Org/Name` or `Org/Name@revision`."""
    revision: Name | None = None
    """Branch, tag or commit of the hub repository; None: its main branch."""
    dtype: Literal["auto", "f32", "bf16", "f16"] = "auto"
    """Of activations and unquantized weights; auto: bf16 where checkpoint and CPU have it."""
    task: Literal["auto", "generate", "embed", "classify"] = "auto"
    """What the model is asked for; auto: what its class and its sentence-transformers files say."""
    pooling: Literal["auto", "cls", "mean", "max", "lasttoken", "weightedmean"] = "auto"
    """How an encoder's hidden states become a vector; auto: as its files say."""
    normalize: Flag | None = None
    """Whether vectors have length 1; None: as the encoder's files say."""
    engine: EngineSettings = EngineSettings()
    quant: QuantSettings = QuantSettings()
    mesh: MeshSettings = MeshSettings()
    limits: LimitSettings = LimitSettings()
    sampling: SamplingSettings = SamplingSettings()
    server: ServerSettings = ServerSettings()
    chat_template: Name | None = None
    """A file with a Jinja template to use in the place of the checkpoint's own."""
    answer_language: Name | None = None
    """Of models that translate into several languages: the token with which answers begin."""
    ignore_config: Names = ()
    """Fields of config.json that are known not to change what this model computes."""
    plugins: Names = ()
    """Python modules of the user's own, imported by name: architectures and ops."""
    verify: Flag = True
    """Check a build against the reference engine before it is published."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.revision is not None and "@" in self.checkpoint:
            raise ValueError("revision is given twice: in checkpoint after '@', and in revision")
        return self
