"""A tiny model of every class of the zoo that TensorRT's compiler is given, and weights for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import numpy as np

from paddock.engines.protocol import BuildError
from paddock.engines.tensorrt.engine import prepare
from paddock.engines.tensorrt.subprocess_build import Request
from paddock.graph import Array, DType, Graph, QuantFormat
from paddock.graph.ops import Weight
from paddock.graph.tensor import fixed
from paddock.layers import quantize, trace
from paddock.models import registry
from tests.engines.tensorrt.networks import OPTIONS
from tests.models import encoder_cases, encoder_decoder_cases, vision_cases
from tests.models.decoder_draws import DECODERS, FAMILIES, Draw
from tests.models.encoder_cases import EncoderCase
from tests.models.encoder_decoder_cases import EncoderDecoderCase
from tests.models.expert_draws import EXPERTS
from tests.models.parity_cases import CASES, CHARACTERISTIC
from tests.models.remote_code_draws import REMOTE
from tests.models.state_draws import STATES
from tests.models.vision_cases import VisionCase

Config = dict[str, Any]
DRAWN = (*DECODERS, *EXPERTS, *STATES)
CONTEXT = 41
# Classes that are another's under a second name, or with a head that embeds.
SAME = {
    "BaiChuanForCausalLM": "BaichuanForCausalLM",
    "BertForPreTraining": "BertForMaskedLM",
    "ChatGLMForConditionalGeneration": "ChatGLMModel",
    "ElectraForPreTraining": "ElectraForMaskedLM",
    "MPTForCausalLM": "MptForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "SmolVLMForConditionalGeneration": "Idefics3ForConditionalGeneration",
}

# Bamba's draws all have heads of 12 numbers. RecurrentGemma's first has blocks of 20, whose
# products in f16 take the compiler more than ten minutes for sm80; of 8 and of 24, seconds.
ALIGNED: dict[str, Config] = {
    "BambaForCausalLM": {"num_attention_heads": 6, "num_key_value_heads": 2},
    "RecurrentGemmaForCausalLM": {"lru_width": 48},
}


def configs(name: str) -> Iterator[Config]:
    """Configs of a class, as many as are asked for."""
    if name in SAME:
        for config in configs(SAME[name]):
            yield config | {"architectures": [name]}
    elif name in _OF_CASES:
        yield CASES[_OF_CASES[name]]
    elif name in REMOTE:
        for number in count():
            drawn = REMOTE[name].draw(Draw(name, number, divisible=True))
            yield REMOTE[name].config(drawn) | {"architectures": [name]}
    elif name in DRAWN:
        for number in count():
            yield FAMILIES[name](Draw(name, number, divisible=True)) | ALIGNED.get(name, {})
    elif name in _SEEING:
        draw = vision_cases.DRAW[_SEEING[name]]
        for number in count():
            config = draw(np.random.default_rng(number), 1 + number % 3)
            yield config | {"architectures": [name]}
    elif name in _OF_SOURCES:
        yield from (EncoderDecoderCase(f"{_OF_SOURCES[name]}/{n}").config for n in count(1))
    else:
        yield from (EncoderCase(f"{name}/{n}").config for n in count(1))


# Of the classes that have cases, the one with its peculiarities on, or else its first.
_OF_CASES = {
    config["architectures"][0]: name
    for name, config in [
        *((n, CASES[n]) for n in reversed(CASES)),
        *((n, CASES[n]) for n in CHARACTERISTIC),
    ]
}
_OF_SOURCES = {
    EncoderDecoderCase(name).config["architectures"][0]: name.partition("/")[0]
    for name in encoder_decoder_cases.NAMES
}
# Steps of these have arrays that a padded step has not: places beside positions.
REFUSED = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
_SEEING = {
    VisionCase(name).config["architectures"][0]: name.partition("/")[0]
    for name in reversed(vision_cases.NAMES)
    if VisionCase(name).config["architectures"][0] not in (*SAME, *REFUSED)
}
CLASSES = tuple(
    dict.fromkeys(
        [
            *_OF_CASES,
            *DRAWN,
            *REMOTE,
            *(name.partition("/")[0] for name in encoder_cases.NAMES),
            *_OF_SOURCES,
            *_SEEING,
            *SAME,
        ]
    )
)


def traced(config: Mapping[str, Any], dtype: DType, quant: QuantFormat | None) -> Graph:
    model = registry.read(dict(config)).build()
    if quant is not None:
        quantize(model, quant)
    return trace(model, dtype=dtype, max_context=CONTEXT)


def request_of(name: str, dtype: DType, quant: QuantFormat | None, **options: Any) -> Request:
    """The first config of a class whose heads TensorRT compiles in narrow floats: it wants whole
    multiples of 8 numbers."""
    refusals = []
    for config, _ in zip(configs(name), range(40), strict=False):
        try:
            return prepare(
                traced(config, dtype, quant), {**OPTIONS, "max_context": CONTEXT, **options}
            )
        except BuildError as error:
            if "multiples of 8" not in str(error):
                raise
            refusals.append(str(error))
    raise BuildError("\n".join(refusals))


class DrawnWeights:
    """Some numbers for each weight that a graph reads."""

    def __init__(self, graph: Graph) -> None:
        self._ops = [node.op for node in graph.find(Weight) if isinstance(node.op, Weight)]
        self._random = np.random.default_rng(0)

    def whole(self, name: str) -> Array:
        return self.stored(name)

    def part(self, name: str, part: str) -> Array:
        return self.stored(name, part)

    def stored(self, name: str, part: str = "") -> Array:
        (op,) = {op for op in self._ops if (op.key, op.part) == (name, part)}
        shape = fixed(op.shape)
        if op.dtype is DType.I4:
            return self._random.integers(0, 256, (*shape[:-1], shape[-1] // 2)).astype(np.uint8)
        if op.dtype.is_float:
            return (0.1 * self._random.standard_normal(shape)).astype(op.dtype.numpy)
        return self._random.integers(-7, 8, shape).astype(op.dtype.numpy)
