"""llama.cpp through llama-cpp-python's own binding of its C interface."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

import gguf
import llama_cpp
import ml_dtypes  # noqa: F401 (teaches NumPy bf16, which safetensors needs)
import numpy as np
from safetensors import safe_open
from worker import CAPACITY_TOKENS, Unsupported, main

FILE_TYPES = {
    "f32": llama_cpp.LLAMA_FTYPE_ALL_F32,
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def to_gguf_name(name: str) -> str:
    if name.startswith("model.layers."):
        _, _, layer, rest = name.split(".", 3)
        return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
    return {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }[name]


def interleave_rotary(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder a projection's rows: Hugging Face rotates halves of a head, llama.cpp pairs."""
    count, columns = rows.shape
    return (
        rows.reshape(heads, 2, count // heads // 2, columns).swapaxes(1, 2).reshape(count, columns)
    )


def write_gguf(model: Path, path: Path) -> None:
    """The checkpoint as a bf16 GGUF file, the form llama.cpp's own tool quantizes from."""
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    # Text plays no part here: a vocabulary of the right size with the byte tokens that the format
    # asks for.
    rest = config["vocab_size"] - 259
    writer.add_tokenizer_model("llama")
    writer.add_token_list(
        [b"<unk>", b"<s>", b"</s>"]
        + [f"<0x{byte:02X}>".encode() for byte in range(256)]
        + [f"t{index}".encode() for index in range(rest)]
    )
    writer.add_token_scores([0.0] * 259 + [-float(index) for index in range(rest)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * rest)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    with safe_open(model / "model.safetensors", framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
            values = tensors.get_tensor(name)
            if values.ndim == 1:
                writer.add_tensor(to_gguf_name(name), values.astype(np.float32))
                continue
            if "q_proj" in name:
                values = interleave_rotary(values, config["num_attention_heads"])
            elif "k_proj" in name:
                values = interleave_rotary(values, config["num_key_value_heads"])
            raw = np.ascontiguousarray(values).view(np.uint8).reshape(values.shape[0], -1)
            writer.add_tensor(to_gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepare(model: Path, precision: str, folder: Path) -> None:
    if precision not in FILE_TYPES:
        raise Unsupported("its 4-bit formats have groups of 32")
    source = folder / "bf16.gguf"
    write_gguf(model, source)
    if precision == "bf16":
        source.rename(folder / "model.gguf")
        return
    llama_cpp.llama_backend_init()
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = FILE_TYPES[precision]
    # Pure: the vocabulary head in the same precision as the rest, as in the other engines
    # (llama.cpp keeps it in 6 bits otherwise).
    options.pure = True
    target = str(folder / "model.gguf").encode()
    if llama_cpp.llama_model_quantize(str(source).encode(), target, ctypes.byref(options)):
        raise RuntimeError(f"llama.cpp could not quantize {source}")
    source.unlink()


class LlamaCpp:
    engine = "llama.cpp"

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.threads = threads
        self.cache_type = llama_cpp.GGML_TYPE_F32 if precision == "f32" else llama_cpp.GGML_TYPE_F16
        self.version = f"{llama_cpp.__version__} (llama-cpp-python)"
        self.settings = {
            "weights": {"int8": "Q8_0", "int4": "Q4_0"}.get(precision, precision.upper()),
            "KV cache": "f32" if precision == "f32" else "f16",
            "compiled for": llama_cpp.llama_print_system_info().decode().strip(" |"),
        }
        self.batch = llama_cpp.llama_batch_init(CAPACITY_TOKENS, 0, 1)
        self.context = None
        self.sequences = 0
        self.make_context(1)

    def make_context(self, sequences: int) -> None:
        """A context for so many sequences, all of the capacity theirs in equal shares."""
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = CAPACITY_TOKENS
        options.n_batch = CAPACITY_TOKENS
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = self.threads
        options.type_k = options.type_v = self.cache_type
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        self.sequences = sequences

    def put(self, slot: int, token: int, position: int, sequence: int, wanted: bool) -> None:
        self.batch.token[slot] = token
        self.batch.pos[slot] = position
        self.batch.n_seq_id[slot] = 1
        self.batch.seq_id[slot][0] = sequence
        self.batch.logits[slot] = wanted

    def compute(self, tokens: int, rows: list[int]) -> None:
        self.batch.n_tokens = tokens
        if llama_cpp.llama_decode(self.context, self.batch):
            raise RuntimeError("llama_decode failed")
        self.latest = np.stack(
            [
                np.ctypeslib.as_array(
                    llama_cpp.llama_get_logits_ith(self.context, row), (self.vocabulary,)
                )
                for row in rows
            ]
        )
        for sequence, token in enumerate(self.latest.argmax(axis=1).tolist()):
            self.tokens[sequence].append(token)

    def begin(self, prompts: Sequence[np.ndarray], steps: int) -> None:
        if len(prompts) != self.sequences:
            self.make_context(len(prompts))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.lengths = [len(prompt) for prompt in prompts]
        slot, rows = 0, []
        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt.tolist()):
                self.put(slot, token, position, sequence, position == len(prompt) - 1)
                slot += 1
            rows.append(slot - 1)
        self.compute(slot, rows)

    def advance(self) -> None:
        for sequence, tokens in enumerate(self.tokens):
            self.put(sequence, tokens[-1], self.lengths[sequence], sequence, True)
            self.lengths[sequence] += 1
        self.compute(len(self.tokens), list(range(len(self.tokens))))

    def generated(self) -> list[list[int]]:
        return self.tokens

    def logits(self) -> np.ndarray:
        return self.latest


if __name__ == "__main__":
    main(
        prepare,
        lambda model, precision, folder, threads: LlamaCpp(
            folder / "model.gguf", precision, threads
        ),
    )
