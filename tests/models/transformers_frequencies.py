"""What transformers makes of rotary settings. Importing it needs torch and transformers."""

import copy
import warnings

from tests.models.rotary_cases import RotaryCase

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


def transformers_frequencies(case: RotaryCase) -> tuple[list[float], float]:
    """Radians a position for each pair, and the factor on cosines and sines."""
    sizes = {"hidden_size": 2 * case.head_dim, "num_attention_heads": 2, "head_dim": case.head_dim}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.LlamaConfig.from_dict(copy.deepcopy(case.fields) | sizes)
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            rotary = LlamaRotaryEmbedding(config)
            return rotary.inv_freq.tolist(), float(rotary.attention_scaling)
        inverse, factor = ROPE_INIT_FUNCTIONS[kind](config, None, seq_len=case.length)
    return inverse.tolist(), float(factor)
