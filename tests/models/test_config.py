"""Reading config.json: what is accepted, what is refused, and that nothing else happens."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import warnings
from math import prod
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddock.layers import trace
from paddock.models import registry
from paddock.models.config import ConfigError
from paddock.models.llama import LlamaConfig
from tests.models.parity_cases import CASES, LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from tests.models.real_configs import PARAMETERS, REAL_CONFIGS

ALL = {"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3, "smollm3": SMOLLM3}


def config(data: dict[str, Any]) -> LlamaConfig:
    found = registry.read(data).config
    assert isinstance(found, LlamaConfig)
    return found


@pytest.mark.parametrize("name", REAL_CONFIGS)
def test_published_configs_are_accepted_as_they_are(name: str) -> None:
    data = json.loads(json.dumps(REAL_CONFIGS[name]))
    model = registry.read(data).build()
    slots = dict(model.named_parameters())
    if data.get("tie_word_embeddings", name.endswith("SmolLM3-3B")):
        del slots["lm_head.weight"]
    assert sum(prod(slot.shape) for slot in slots.values()) == pytest.approx(
        PARAMETERS[name], rel=2e-3
    )


def test_what_the_published_configs_say_is_what_is_read() -> None:
    smol = config(REAL_CONFIGS["HuggingFaceTB/SmolLM3-3B"])
    assert smol.tie_word_embeddings
    assert [smol.has_rotary(i) for i in range(8)] == [True, True, True, False] * 2
    assert smol.scaling().rope_theta == 5e6
    assert config(REAL_CONFIGS["mistralai/Mistral-7B-v0.1"]).window(3) == 4096
    assert config(REAL_CONFIGS["mistralai/Mistral-7B-Instruct-v0.3"]).window(3) is None
    assert config(MISTRAL).window(0) == 4096  # left out is not null
    assert config(REAL_CONFIGS["Qwen/Qwen2.5-7B"]).window(27) is None
    assert config(REAL_CONFIGS["Qwen/Qwen2.5-7B"]).qkv_bias
    assert not config(REAL_CONFIGS["Qwen/Qwen3-0.6B"]).qkv_bias
    assert config(REAL_CONFIGS["Qwen/Qwen3-0.6B"]).head_dim == 128
    assert config(REAL_CONFIGS["huggyllama/llama-7b"]).num_key_value_heads == 32
    assert config(REAL_CONFIGS["HuggingFaceTB/SmolLM2-135M"]).head_dim == 64
    llama = config(REAL_CONFIGS["meta-llama/Llama-3.2-1B-Instruct"]).scaling()
    assert (llama.rope_type, llama.factor, llama.rope_theta) == ("llama3", 32.0, 5e5)


@pytest.mark.parametrize("name", ALL)
def test_defaults_are_those_of_transformers(name: str) -> None:
    """What a file leaves out means the same to both. Sizes may not be left out."""
    if not importlib.util.find_spec("transformers"):
        pytest.skip("transformers is not installed (`make parity` installs it)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        required = {
            k: ALL[name][k]
            for k in (
                *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
                *("num_attention_heads", "num_key_value_heads"),
            )
        }
        theirs = transformers.CONFIG_MAPPING[name].from_dict(copy.deepcopy(required))
    ours = config(required | {"architectures": ALL[name]["architectures"]})
    assert ours.scaling().rope_theta == theirs.rope_parameters["rope_theta"]
    for field in type(ours).model_fields:
        if field in ("rope_theta", "rope_scaling", "rope_parameters", "activation"):
            continue
        expected = getattr(theirs, field, False)
        if field == "head_dim" and expected is False:
            expected = theirs.hidden_size // theirs.num_attention_heads
        found = getattr(ours, field)
        if field in ("layer_types", "no_rope_layers"):
            assert found is None  # worked out layer by layer, and compared below
        elif field == "sliding_window" and not getattr(ours, "use_sliding_window", True):
            assert theirs.sliding_window is None
        else:
            assert found == expected, field
    for layer in range(required["num_hidden_layers"]):
        rotated = getattr(theirs, "no_rope_layers", [1] * 99)[layer]
        assert ours.has_rotary(layer) == bool(rotated)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("embedding_multiplier", 12.0),
        ("logits_scaling", 8.0),
        ("residual_multiplier", 0.22),
        ("attention_multiplier", 0.1),
        ("partial_rotary_factor", 0.5),
        ("rope_interleaved", True),
        ("num_local_experts", 8),
        ("clip_qkv", 8.0),
        ("qk_layernorm", True),
        ("parallel_attn", True),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}),
        ("layer_norm_epsilon", 1e-5),
        ("query_pre_attn_scalar", 256),
        ("num_nextn_predict_layers", 1),
        ("alibi", True),
        ("mlp_only_layers", [3]),
    ],
)
def test_unknown_fields_that_change_the_mathematics_are_refused(
    family: str, field: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=rf"does not know the field '{field}' = .*ignore_config="):
        registry.read(ALL[family] | {field: value})
    # What is off may stand there, and a user may know better.
    offs: tuple[Any, ...] = (None, False, [], {}, "")
    for off in offs:
        registry.read(ALL[family] | {field: off})
    registry.read(ALL[family] | {field: value}, ignore=frozenset({field}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LLAMA | {"vocab_sise": 3}, "'vocab_sise' = 3.*nearest is 'vocab_size'"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "hidden_size: Field required$"),
        (LLAMA | {"hidden_size": "64"}, "hidden_size: .*valid integer, found '64'"),
        (LLAMA | {"hidden_size": 64.5}, "hidden_size: .*integer.*, found 64.5"),
        (LLAMA | {"hidden_size": True}, "hidden_size: .*integer, found True"),
        (LLAMA | {"hidden_size": 0}, "hidden_size: .*greater than 0, found 0"),
        (LLAMA | {"hidden_size": -64}, "hidden_size: .*greater than 0, found -64"),
        (LLAMA | {"hidden_size": 10**30}, "hidden_size: .*less than or equal to"),
        (LLAMA | {"hidden_size": [64]}, r"hidden_size: .*integer, found \[64\]"),
        (LLAMA | {"hidden_size": 66}, "66 is not a multiple of num_attention_heads 4, and no head"),
        (LLAMA | {"hidden_size": 2**20, "num_attention_heads": 1}, "head_dim: .*less than or eq"),
        (LLAMA | {"num_hidden_layers": 10**6}, "num_hidden_layers: .*less than or equal to 1000"),
        (LLAMA | {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of .* 3"),
        (LLAMA | {"head_dim": 15}, "15 elements of a head of 15 turn: expected an even number"),
        (LLAMA | {"rms_norm_eps": math.nan}, "rms_norm_eps: .*, found nan"),
        (LLAMA | {"rms_norm_eps": math.inf}, "rms_norm_eps"),
        (LLAMA | {"rms_norm_eps": -1e-5}, "rms_norm_eps: .*greater than or equal to 0"),
        (LLAMA | {"rms_norm_eps": "1e-5"}, "rms_norm_eps: .*valid number, found '1e-5'"),
        (LLAMA | {"rope_theta": math.nan}, "rope_theta"),
        (LLAMA | {"rope_theta": 0}, "rope_theta is 0"),
        (LLAMA | {"attention_bias": 1}, "attention_bias: .*valid boolean, found 1"),
        (LLAMA | {"tie_word_embeddings": "false"}, "tie_word_embeddings: .*boolean"),
        (LLAMA | {"hidden_act": "xielu"}, "hidden_act 'xielu' is none of silu, swish, gelu"),
        (LLAMA | {"hidden_act": ["silu"]}, "hidden_act: .*valid string"),
        (LLAMA | {"activation": "geglu"}, "activation"),
        (LLAMA | {"rope_scaling": "llama3"}, "rope_scaling: .*dictionary"),
        (LLAMA | {"rope_scaling": {"type": "su", "factor": 2.0}}, "rope_type 'su' is none of"),
        (LLAMA | {"rope_scaling": {"type": ["linear"]}}, "rope_type .* is no text"),
        (
            LLAMA | {"rope_scaling": {"type": "linear", "rope_type": "yarn"}},
            "type 'linear' and rope_type 'yarn' differ",
        ),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, "'linear' needs 'factor'"),
        (
            LLAMA | {"rope_scaling": {"type": "linear", "factor": "2"}},
            "factor is '2', expected a number",
        ),
        (
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [8]}},
            r"rope_scaling: unknown field 'mrope_section' = \[8\]",
        ),
        (
            LLAMA | {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters: unknown field 'full_attention'",
        ),
        (
            LLAMA
            | {
                "rope_scaling": {"type": "yarn", "factor": 4.0},
                "rope_parameters": {"rope_type": "default"},
            },
            "rope_parameters gives rope_type 'default', rope_scaling 'yarn'; remove one",
        ),
        (
            LLAMA | {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}},
            "rope_parameters gives rope_theta 6.0, rope_theta 5.0",
        ),
        (
            LLAMA
            | {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 8.5,
                }
            },
            "original_max_position_embeddings is 8.5, expected a whole number",
        ),
        (
            LLAMA
            | {"rope_scaling": {"type": "longrope", "short_factor": 1.0, "long_factor": [1.0]}},
            "short_factor is 1.0, expected a list of numbers",
        ),
        (
            LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"quantized \('gptq'\); use the original checkpoint and let `quant=int8`",
        ),
        (LLAMA | {"quantization_config": "awq"}, "the checkpoint is quantized"),
        (LLAMA | {"quantization_config": [1]}, "the checkpoint is quantized"),
        (MISTRAL | {"attention_bias": True}, "attention_bias: .*False"),
        (MISTRAL | {"layer_types": ["full_attention"] * 3}, "know the field 'layer_types'"),
        (MISTRAL | {"sliding_window": 0}, "sliding_window: .*greater than 0"),
        (MISTRAL | {"sliding_window": "4096"}, "sliding_window: .*integer"),
        (QWEN2 | {"mlp_bias": True}, "mlp_bias: .*False"),
        (QWEN2 | {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        (
            QWEN2 | {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
            "layer 1 is 'chunked_attention', expected 'full_attention' or 'sliding_attention'",
        ),
        (
            QWEN2 | {"layer_types": ["full_attention", "full_attention", "sliding_attention"]},
            "layer 2 is 'sliding_attention', but sliding_window and use_sliding_window say",
        ),
        (QWEN2 | {"layer_types": "full_attention"}, "layer_types: .*tuple"),
        (QWEN2 | {"max_window_layers": -1}, "max_window_layers: .*greater than or equal to 0"),
        (SMOLLM3 | {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries for 5 layers"),
        (SMOLLM3 | {"no_rope_layers": [1, 0, 2, 1, 0]}, "no_rope_layers.2: .*less than or equal"),
        (SMOLLM3 | {"no_rope_layer_interval": 0}, "no_rope_layer_interval: .*greater than 0"),
        (
            {"architectures": ["LlamaForCausal"]},
            "not in the zoo; nearest are 'LlamaForCausalLM', ",
        ),
        ({"architectures": ["ParrotLMHeadModel"]}, "To add one, see docs/add-a-model.md"),
        ({"architectures": []}, "'architectures' must be a list with the class's name"),
        ({"architectures": "LlamaForCausalLM"}, "'architectures' must be a list"),
        ({"architectures": [3]}, "'architectures' must be a list"),
        ({}, "'architectures' must be a list"),
    ],
)
def test_errors_name_the_field_what_was_expected_and_what_was_found(
    data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        registry.read(data)
    assert str(error.value).count("\n") == 0
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("data", [[], None, 3, "config", [LLAMA]])
def test_a_file_that_holds_no_object_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: expected an object, found a"):
        registry.read(data)


# What json.loads can give, the nastier the better.
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**40, 1e308, -0.0, math.nan, math.inf, -math.inf])
    | st.floats()
    | st.sampled_from(["", "64", "silu", "yarn", "full_attention", "\x00", "\ud800", "x" * 9999])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["rope_type", "type", "factor", "rope_theta", "short_factor", "quant_method", "a"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
FIELDS = sorted(
    {
        *(field for data in ALL.values() for field in registry.read(data).config.__dict__),
        *("architectures", "model_type", "quantization_config", "unknown"),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    family=st.sampled_from(sorted(ALL)),
    changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3),
)
def test_nothing_in_a_config_does_more_than_be_refused(
    family: str, changes: dict[str, Any]
) -> None:
    """Whatever stands there: either it is read, and a model can be traced, or a ConfigError."""
    try:
        architecture = registry.read(ALL[family] | changes)
    except ConfigError as refused:
        message = str(refused)
    else:
        message = ""
    assert len(message) < 1000
    if message:
        return
    cfg = architecture.config
    assert isinstance(cfg, LlamaConfig)
    if cfg.num_hidden_layers <= 8:
        trace(architecture.build(), max_context=16)


def test_absurd_sizes_allocate_nothing() -> None:
    """The largest sizes that are let through build a model in no memory and little time."""
    import tracemalloc

    huge = LLAMA | {
        "vocab_size": 2**22,
        "hidden_size": 2**22,
        "intermediate_size": 2**22,
        "num_hidden_layers": 4,
        "num_attention_heads": 2**14,
        "num_key_value_heads": 2**14,
        "head_dim": 2**14,
    }
    tracemalloc.start()
    trace(registry.read(huge).build(), max_context=2**31)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_every_case_is_json() -> None:
    for data in (*CASES.values(), *REAL_CONFIGS.values()):
        assert json.loads(json.dumps(data, allow_nan=False)) == data
