"""RecurrentGemma in Hugging Face's layout: norms less 1, gates' matrices [inputs, outputs]."""

from paddock.weights.llama import HUGGING_FACE as LLAMA
from paddock.weights.rules import Add, Rename, Rule, Transpose

HUGGING_FACE: tuple[Rule, ...] = (
    *LLAMA,
    Rename("input_gate.weight", "input_gate_weight"),
    Rename("input_gate.bias", "input_gate_bias"),
    Rename("recurrent_gate.weight", "recurrent_gate_weight"),
    Rename("recurrent_gate.bias", "recurrent_gate_bias"),
    Transpose("input_gate.weight"),
    Transpose("recurrent_gate.weight"),
    Add("temporal_pre_norm", 1.0),
    Add("channel_pre_norm", 1.0),
    Add("final_norm", 1.0),
)
