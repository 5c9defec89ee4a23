"""From a checkpoint's `architectures` entry to the classes that build it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from paddock.graph import Module, nearest
from paddock.models.config import ConfigError, ModelConfig, Reads, Task
from paddock.models.images import ImageForm
from paddock.models.pooled import Pooled

# `architectures` entry -> module. Files are named by the checkpoint's model_type.
ARCHITECTURES: dict[str, str] = {
    "ArceeForCausalLM": "paddock.models.arcee",
    "BaiChuanForCausalLM": "paddock.models.baichuan",
    "BaichuanForCausalLM": "paddock.models.baichuan",
    "BambaForCausalLM": "paddock.models.bamba",
    "BartForConditionalGeneration": "paddock.models.bart",
    "BertForMaskedLM": "paddock.models.bert",
    "BertForPreTraining": "paddock.models.bert",
    "BertForSequenceClassification": "paddock.models.bert",
    "BertForTokenClassification": "paddock.models.bert",
    "BertModel": "paddock.models.bert",
    "BloomForCausalLM": "paddock.models.bloom",
    "CamembertForMaskedLM": "paddock.models.camembert",
    "CamembertForSequenceClassification": "paddock.models.camembert",
    "CamembertForTokenClassification": "paddock.models.camembert",
    "CamembertModel": "paddock.models.camembert",
    "ChatGLMForConditionalGeneration": "paddock.models.chatglm",
    "ChatGLMModel": "paddock.models.chatglm",
    "CodeGenForCausalLM": "paddock.models.codegen",
    "Cohere2ForCausalLM": "paddock.models.cohere2",
    "CohereForCausalLM": "paddock.models.cohere",
    "DbrxForCausalLM": "paddock.models.dbrx",
    "DeepseekV2ForCausalLM": "paddock.models.deepseek_v2",
    "DeepseekV3ForCausalLM": "paddock.models.deepseek_v3",
    "DistilBertForMaskedLM": "paddock.models.distilbert",
    "DistilBertForSequenceClassification": "paddock.models.distilbert",
    "DistilBertForTokenClassification": "paddock.models.distilbert",
    "DistilBertModel": "paddock.models.distilbert",
    "ElectraForMaskedLM": "paddock.models.electra",
    "ElectraForPreTraining": "paddock.models.electra",
    "ElectraForSequenceClassification": "paddock.models.electra",
    "ElectraForTokenClassification": "paddock.models.electra",
    "ElectraModel": "paddock.models.electra",
    "Ernie4_5ForCausalLM": "paddock.models.ernie4_5",
    "Exaone4ForCausalLM": "paddock.models.exaone4",
    "ExaoneForCausalLM": "paddock.models.exaone",
    "FalconForCausalLM": "paddock.models.falcon",
    "FalconH1ForCausalLM": "paddock.models.falcon_h1",
    "GPT2LMHeadModel": "paddock.models.gpt2",
    "GPTBigCodeForCausalLM": "paddock.models.gpt_bigcode",
    "GPTJForCausalLM": "paddock.models.gptj",
    "GPTNeoForCausalLM": "paddock.models.gpt_neo",
    "GPTNeoXForCausalLM": "paddock.models.gpt_neox",
    "Gemma2ForCausalLM": "paddock.models.gemma2",
    "Gemma3ForCausalLM": "paddock.models.gemma3_text",
    "Gemma3ForConditionalGeneration": "paddock.models.gemma3",
    "GemmaForCausalLM": "paddock.models.gemma",
    "Glm4ForCausalLM": "paddock.models.glm4",
    "Glm4MoeForCausalLM": "paddock.models.glm4_moe",
    "GlmForCausalLM": "paddock.models.glm",
    "GptOssForCausalLM": "paddock.models.gpt_oss",
    "GraniteForCausalLM": "paddock.models.granite",
    "GraniteMoeForCausalLM": "paddock.models.granitemoe",
    "HeliumForCausalLM": "paddock.models.helium",
    "Idefics3ForConditionalGeneration": "paddock.models.idefics3",
    "InternLM2ForCausalLM": "paddock.models.internlm2",
    "InternLM3ForCausalLM": "paddock.models.internlm3",
    "JambaForCausalLM": "paddock.models.jamba",
    "LlamaForCausalLM": "paddock.models.llama",
    "LlavaForConditionalGeneration": "paddock.models.llava",
    "M2M100ForConditionalGeneration": "paddock.models.m2m_100",
    "MBartForConditionalGeneration": "paddock.models.mbart",
    "MPNetForMaskedLM": "paddock.models.mpnet",
    "MPNetForSequenceClassification": "paddock.models.mpnet",
    "MPNetForTokenClassification": "paddock.models.mpnet",
    "MPNetModel": "paddock.models.mpnet",
    "MPTForCausalLM": "paddock.models.mpt",
    "Mamba2ForCausalLM": "paddock.models.mamba2",
    "MambaForCausalLM": "paddock.models.mamba",
    "MarianMTModel": "paddock.models.marian",
    "MiniCPMForCausalLM": "paddock.models.minicpm",
    "MinistralForCausalLM": "paddock.models.ministral",
    "MistralForCausalLM": "paddock.models.mistral",
    "MixtralForCausalLM": "paddock.models.mixtral",
    "ModernBertForMaskedLM": "paddock.models.modernbert",
    "ModernBertForSequenceClassification": "paddock.models.modernbert",
    "ModernBertForTokenClassification": "paddock.models.modernbert",
    "ModernBertModel": "paddock.models.modernbert",
    "MptForCausalLM": "paddock.models.mpt",
    "NemotronForCausalLM": "paddock.models.nemotron",
    "NomicBertForMaskedLM": "paddock.models.nomic_bert",
    "NomicBertForSequenceClassification": "paddock.models.nomic_bert",
    "NomicBertForTokenClassification": "paddock.models.nomic_bert",
    "NomicBertModel": "paddock.models.nomic_bert",
    "OPTForCausalLM": "paddock.models.opt",
    "Olmo2ForCausalLM": "paddock.models.olmo2",
    "Olmo3ForCausalLM": "paddock.models.olmo3",
    "OlmoForCausalLM": "paddock.models.olmo",
    "OlmoeForCausalLM": "paddock.models.olmoe",
    "PegasusForConditionalGeneration": "paddock.models.pegasus",
    "PersimmonForCausalLM": "paddock.models.persimmon",
    "Phi3ForCausalLM": "paddock.models.phi3",
    "PhiForCausalLM": "paddock.models.phi",
    "PhiMoEForCausalLM": "paddock.models.phimoe",
    "PhimoeForCausalLM": "paddock.models.phimoe",
    "Qwen2ForCausalLM": "paddock.models.qwen2",
    "Qwen2MoeForCausalLM": "paddock.models.qwen2_moe",
    "Qwen2VLForConditionalGeneration": "paddock.models.qwen2_vl",
    "Qwen2_5_VLForConditionalGeneration": "paddock.models.qwen2_5_vl",
    "Qwen3ForCausalLM": "paddock.models.qwen3",
    "Qwen3MoeForCausalLM": "paddock.models.qwen3_moe",
    "Qwen3NextForCausalLM": "paddock.models.qwen3_next",
    "RecurrentGemmaForCausalLM": "paddock.models.recurrent_gemma",
    "RobertaForMaskedLM": "paddock.models.roberta",
    "RobertaForSequenceClassification": "paddock.models.roberta",
    "RobertaForTokenClassification": "paddock.models.roberta",
    "RobertaModel": "paddock.models.roberta",
    "SeedOssForCausalLM": "paddock.models.seed_oss",
    "SmolLM3ForCausalLM": "paddock.models.smollm3",
    "SmolVLMForConditionalGeneration": "paddock.models.idefics3",
    "StableLmForCausalLM": "paddock.models.stablelm",
    "Starcoder2ForCausalLM": "paddock.models.starcoder2",
    "T5ForConditionalGeneration": "paddock.models.t5",
    "WhisperForConditionalGeneration": "paddock.models.whisper",
    "XLMRobertaForMaskedLM": "paddock.models.xlm_roberta",
    "XLMRobertaForSequenceClassification": "paddock.models.xlm_roberta",
    "XLMRobertaForTokenClassification": "paddock.models.xlm_roberta",
    "XLMRobertaModel": "paddock.models.xlm_roberta",
}
ENTRY_POINT_GROUP = "paddock.models"


class ModelClass(Protocol):
    """What an architecture's class gives beside being a Module.

    `task` (`Task`, "generate" where it is left out) says what its output is; a classifier's
    `reads` (`Reads`), of which tokens. `reads_source` is true of an encoder-decoder,
    `hears` of one that is fed windows of a log-mel (`paddock.runtime.audio.log_mel`).
    """

    Config: type[ModelConfig]
    weight_map: str  # the module that holds its HUGGING_FACE rules

    def __call__(self, cfg: Any) -> Module: ...


@dataclass(frozen=True)
class Architecture:
    """A model class, its config as read from a checkpoint, and where its weight map lies.

    `pooled`: of a model that writes text, the hidden states in the place of the logits.
    """

    name: str
    model_class: ModelClass
    config: ModelConfig
    pooled: bool = False

    @property
    def reads_source(self) -> bool:
        """Whether a prompt is what an encoder reads, and the answer a decoder's."""
        return bool(getattr(self.model_class, "reads_source", False))

    @property
    def heard(self) -> tuple[int, int] | None:
        """Of a model that hears, places and numbers of what its encoder is fed."""
        if not getattr(self.model_class, "hears", False):
            return None
        bands = int(getattr(self.config, "num_mel_bins", 0))
        return self.config.longest_source or 0, 3 * (3 * bands + 1)

    @property
    def image_form(self) -> ImageForm | None:
        """What images are to a model that sees."""
        found: ImageForm | None = getattr(self.config, "image_form", None)
        return found

    @property
    def task(self) -> Task:
        found: Task = getattr(self.model_class, "task", "generate")
        return "embed" if self.pooled else found

    @property
    def reads(self) -> Reads:
        """Of which tokens a classifier reads the hidden state."""
        found: Reads = getattr(self.model_class, "reads", "first")
        return found

    @property
    def weight_map(self) -> str:
        return self.model_class.weight_map

    def build(self) -> Module:
        model = self.model_class(self.config)
        return Pooled(model) if self.pooled else model

    def heads(self) -> tuple[str, ...]:
        """Slots that a `pooled` model does without: those of the vocabulary head."""
        if not self.pooled:
            return ()
        kept = {name for name, _ in self.build().named_parameters()}
        whole = self.model_class(self.config).named_parameters()
        return tuple(name for name, _ in whole if name not in kept)


def register(name: str, module: str) -> None:
    """Make `module`'s class `name` known, for an architecture that lives outside Paddock."""
    ARCHITECTURES[name] = module


def known() -> dict[str, str]:
    """Architecture -> module, Paddock's own and those of installed packages' entry points."""
    outside = {e.name: e.value for e in entry_points(group=ENTRY_POINT_GROUP)}
    return outside | ARCHITECTURES


def read(data: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> Architecture:
    """The architecture that config.json's contents describe. Raises `ConfigError`."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"config.json: expected an object, found a {type(data).__name__}")
    names = data.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ConfigError("config.json: 'architectures' must be a list with the class's name")
    modules = known()
    if names[0] not in modules:
        raise ConfigError(
            f"architecture {names[0][:80]!r} is not in the zoo{nearest(names[0], modules)}; the"
            " README lists what it has. To add one, see docs/add-a-model.md"
        )
    model_class = _model_class(names[0], modules[names[0]])
    return Architecture(names[0], model_class, model_class.Config.read(data, ignore=ignore))


def _model_class(name: str, module: str) -> ModelClass:
    try:
        model_class = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ConfigError(
            f"architecture {name!r}: its module {module} cannot be imported: {error}"
        ) from error
    missing = [part for part in ("Config", "weight_map") if not hasattr(model_class, part)]
    if model_class is None or missing:
        lack = f"class {name}" if model_class is None else f"{name}.{missing[0]}"
        raise ConfigError(
            f"architecture {name!r}: its module {module} has no {lack}; see docs/add-a-model.md"
        )
    found: ModelClass = model_class
    return found
