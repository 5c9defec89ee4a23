"""Weight maps are total both ways on the tensor names of real checkpoints, at their real sizes.

Every slot finds its tensor and every tensor its slot, with the right shape, proved as when a
recipe binds; and the sizes make up the number of parameters that is published.
"""

from __future__ import annotations

import importlib
import json
import math

import pytest

from paddock.graph import Mesh
from paddock.models import registry
from paddock.weights import TensorInfo, prove
from tests.golden.make_names import NAMES, REMOTE, unfold
from tests.models.decoder_configs import DECODER_CONFIGS, PARAMETERS
from tests.models.decoder_draws import DECODERS
from tests.models.llama_names import Folded, llama
from tests.models.remote_code_draws import REMOTE as REMOTE_DECODERS


def _baichuan() -> Folded:
    names = llama("model", layers=32, hidden=4096, inner=11008, q=4096, kv=4096, vocab=125696)
    layer = "model.layers.{0-31}.self_attn."
    for part in "qkv":
        del names[f"{layer}{part}_proj.weight"]
    return names | {f"{layer}W_pack.weight": [12288, 4096], "lm_head.weight": [125696, 4096]}


_EXAONE, _CHATGLM = "transformer.h.{0-29}.", "transformer.encoder.layers.{0-27}."
_INTERNLM2 = "model.layers.{0-31}."
# As the index files of these repositories have them.
REMOTE_NAMES: dict[str, Folded] = {
    "internlm/internlm2_5-7b-chat": {
        "model.tok_embeddings.weight": [92544, 4096],
        f"{_INTERNLM2}attention.wqkv.weight": [6144, 4096],
        f"{_INTERNLM2}attention.wo.weight": [4096, 4096],
        f"{_INTERNLM2}attention_norm.weight": [4096],
        f"{_INTERNLM2}feed_forward.w1.weight": [14336, 4096],
        f"{_INTERNLM2}feed_forward.w2.weight": [4096, 14336],
        f"{_INTERNLM2}feed_forward.w3.weight": [14336, 4096],
        f"{_INTERNLM2}ffn_norm.weight": [4096],
        "model.norm.weight": [4096],
        "output.weight": [92544, 4096],
    },
    "internlm/internlm3-8b-instruct": llama(
        "model", layers=48, hidden=4096, inner=10240, q=4096, kv=256, vocab=128512
    )
    | {"lm_head.weight": [128512, 4096]},
    "LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct": {
        "transformer.wte.weight": [102400, 2560],
        f"{_EXAONE}ln_1.weight": [2560],
        f"{_EXAONE}ln_2.weight": [2560],
        f"{_EXAONE}attn.attention.q_proj.weight": [2560, 2560],
        f"{_EXAONE}attn.attention.k_proj.weight": [640, 2560],
        f"{_EXAONE}attn.attention.v_proj.weight": [640, 2560],
        f"{_EXAONE}attn.attention.out_proj.weight": [2560, 2560],
        f"{_EXAONE}mlp.c_fc_0.weight": [7168, 2560],
        f"{_EXAONE}mlp.c_fc_1.weight": [7168, 2560],
        f"{_EXAONE}mlp.c_proj.weight": [2560, 7168],
        "transformer.ln_f.weight": [2560],
    },
    "openbmb/MiniCPM-2B-sft-bf16": llama(
        "model", layers=40, hidden=2304, inner=5760, q=2304, kv=2304, vocab=122753
    ),
    "baichuan-inc/Baichuan2-7B-Chat": _baichuan(),
    "zai-org/chatglm3-6b": {
        "transformer.embedding.word_embeddings.weight": [65024, 4096],
        "transformer.rotary_pos_emb.inv_freq": [32],
        f"{_CHATGLM}input_layernorm.weight": [4096],
        f"{_CHATGLM}post_attention_layernorm.weight": [4096],
        f"{_CHATGLM}self_attention.query_key_value.weight": [4608, 4096],
        f"{_CHATGLM}self_attention.query_key_value.bias": [4608],
        f"{_CHATGLM}self_attention.dense.weight": [4096, 4096],
        f"{_CHATGLM}mlp.dense_h_to_4h.weight": [27392, 4096],
        f"{_CHATGLM}mlp.dense_4h_to_h.weight": [4096, 13696],
        "transformer.encoder.final_layernorm.weight": [4096],
        "transformer.output_layer.weight": [65024, 4096],
    },
}


def names_of(repo: str) -> dict[str, TensorInfo]:
    known: dict[str, Folded] = json.loads(NAMES.read_text("utf-8")) | REMOTE_NAMES
    return {name: TensorInfo(name, "BF16", shape) for name, shape in unfold(known[repo]).items()}


@pytest.mark.parametrize("repo", DECODER_CONFIGS)
def test_every_slot_and_every_tensor_has_its_other_side(repo: str) -> None:
    architecture = registry.read(DECODER_CONFIGS[repo])
    model = architecture.build()
    slots = dict(model.named_parameters())
    tied = bool(getattr(architecture.config, "tie_word_embeddings", False))
    rules = importlib.import_module(architecture.weight_map).HUGGING_FACE
    tensors = names_of(repo)
    binding = prove(slots, tensors, rules, Mesh(), tied=tied)
    assert set(binding.slots) == set(slots)
    # Nothing is left but masks and frequencies, which are no parameters.
    left = ("bias", "masked_bias", "causal_mask", "inv_freq")
    assert all(name.rsplit(".", 1)[1] in left for name in binding.ignored)
    if repo in PARAMETERS:
        sizes = [math.prod(t.shape) for n, t in tensors.items() if n not in binding.ignored]
        assert sum(sizes) == pytest.approx(PARAMETERS[repo], rel=2e-3)


def test_every_decoder_has_a_real_checkpoint_here() -> None:
    here = {c["architectures"][0] for c in DECODER_CONFIGS.values()}
    modules = {registry.ARCHITECTURES[a] for a in here}
    ours = {registry.ARCHITECTURES[a] for a in (*DECODERS, *REMOTE_DECODERS)}
    assert ours - modules == {"paddock.models.ministral"}  # its checkpoint says MistralForCausalLM
    assert {DECODER_CONFIGS[r]["model_type"] for r in REMOTE_NAMES} == set(REMOTE)
