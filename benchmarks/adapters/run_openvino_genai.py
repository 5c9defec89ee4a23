"""openvino-genai's continuous batching, over a model in the form that its exporter writes.

The graph below is what optimum-intel exports for a Llama (stateful, scaled dot-product attention),
written out here because the exporter lags behind the other packages' releases. The pipeline turns
its attention into paged attention by itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (teaches NumPy bf16, which safetensors needs)
import numpy as np
import openvino
import openvino.opset16 as ops
import openvino_genai
from openvino import PartialShape, Shape, Tensor, Type
from openvino.op import Constant, Parameter, Result
from openvino.op.util import Variable, VariableInfo
from openvino_tokenizers import convert_tokenizer
from safetensors import safe_open
from transformers import AutoTokenizer
from worker import CAPACITY_TOKENS, main

INT4_GROUP = {"int4": 32, "int4-g128": 128}
# With AMX the default for everything is bf16 arithmetic; f32 must be asked for.
ARITHMETIC = {"f32": "f32"}
CACHE = {"f32": "f32"}


def scalar(value: int) -> Any:
    return Constant(Type.i64, Shape([]), [value])


def vector(*values: int) -> Any:
    return Constant(Type.i64, Shape([len(values)]), list(values))


def number(value: float) -> Any:
    return ops.constant(np.float32(value))


def parameter(name: str, element: Any, shape: list[int]) -> Any:
    node = Parameter(element, PartialShape(shape))
    node.set_friendly_name(name)
    node.output(0).get_tensor().set_names({name})
    return node


def shared(values: np.ndarray, shape: tuple[int, ...], element: Any, keep: list[Any]) -> Any:
    """A constant of a type that NumPy lacks. It points into `values`, so `keep` holds them."""
    tensor = Tensor(values, Shape(list(shape)), element)
    keep.append((values, tensor))
    return Constant(tensor)


def weight(values: np.ndarray, precision: str, keep: list[Any]) -> Any:
    """A node of f32 [rows, columns] over bf16 `values` stored at `precision`."""
    if precision == "f32":
        return ops.constant(values.astype(np.float32))
    if precision == "bf16":
        raw = np.ascontiguousarray(values).view(np.uint16)
        return ops.convert(shared(raw, raw.shape, Type.bf16, keep), "f32")
    exact = values.astype(np.float32)
    rows, columns = exact.shape
    if precision == "int8":
        scale = np.abs(exact).max(axis=1, keepdims=True) / 127
        stored = ops.constant(np.rint(exact / scale).astype(np.int8))
        node = ops.multiply(ops.convert(stored, "f16"), ops.constant(scale.astype(np.float16)))
        return ops.convert(node, "f32")
    group = INT4_GROUP[precision]
    grouped = exact.reshape(rows, columns // group, group)
    scale = np.abs(grouped).max(axis=2, keepdims=True) / 7
    nibbles = np.rint(grouped / scale).astype(np.int8).view(np.uint8).reshape(-1, 2) & 15
    packed = nibbles[:, 0] | nibbles[:, 1] << 4  # the lower half first
    stored = shared(packed, grouped.shape, Type.i4, keep)
    node = ops.multiply(ops.convert(stored, "f16"), ops.constant(scale.astype(np.float16)))
    return ops.convert(ops.reshape(node, vector(rows, columns), False), "f32")


class Llama:
    """Builds the stateful graph: [batch, tokens] ids in, [batch, tokens, vocabulary] logits out."""

    def __init__(self, model: Path, precision: str) -> None:
        self.config = json.loads((model / "config.json").read_text())
        self.precision = precision
        self.head_dim = self.config["head_dim"]
        self.heads = self.config["num_attention_heads"]
        self.kv_heads = self.config["num_key_value_heads"]
        self.file = safe_open(model / "model.safetensors", framework="numpy")
        self.sinks: list[Any] = []
        self.keep: list[Any] = []

    def linear(self, x: Any, name: str) -> Any:
        values = self.file.get_tensor(name + ".weight")
        return ops.matmul(x, weight(values, self.precision, self.keep), False, True)

    def norm(self, x: Any, name: str) -> Any:
        gain = self.file.get_tensor(name + ".weight").astype(np.float32).reshape(1, 1, -1)
        mean = ops.reduce_mean(ops.power(x, number(2)), vector(-1), True)
        root = ops.sqrt(ops.add(mean, number(self.config["rms_norm_eps"])))
        return ops.multiply(ops.constant(gain), ops.multiply(x, ops.divide(number(1), root)))

    def to_heads(self, x: Any, heads: int) -> Any:
        split = ops.reshape(x, vector(0, 0, heads, self.head_dim), True)
        return ops.transpose(split, vector(0, 2, 1, 3))

    def rotate(self, x: Any) -> Any:
        half = self.head_dim // 2
        first = ops.slice(x, vector(0), vector(half), vector(1), vector(3))
        second = ops.slice(x, vector(half), vector(2**31 - 1), vector(1), vector(3))
        turned = ops.concat([ops.multiply(second, number(-1)), first], -1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(turned, self.sin))

    def cached(self, current: Any, name: str) -> Any:
        """All keys or values so far, each repeated for the query heads that share it."""
        info = VariableInfo()
        info.data_shape = PartialShape([-1, self.kv_heads, -1, self.head_dim])
        info.data_type = Type.f32
        info.variable_id = name
        variable = Variable(info)
        past = ops.gather(ops.read_value(self.empty, variable), self.beam, scalar(0))
        whole = ops.concat([past, current], 2)
        self.sinks.append(ops.assign(whole, variable))
        shape = ops.shape_of(whole, "i64")
        group = self.heads // self.kv_heads
        wide = ops.concat(
            [
                ops.gather(shape, vector(0, 1), scalar(0)),
                vector(group),
                ops.gather(shape, vector(2, 3), scalar(0)),
            ],
            0,
        )
        repeated = ops.broadcast(ops.unsqueeze(whole, vector(2)), wide, "BIDIRECTIONAL")
        return ops.reshape(repeated, vector(0, self.heads, -1, self.head_dim), True)

    def attention(self, x: Any, name: str, layer: int) -> Any:
        query = self.rotate(self.to_heads(self.linear(x, name + "q_proj"), self.heads))
        key = self.rotate(self.to_heads(self.linear(x, name + "k_proj"), self.kv_heads))
        value = self.to_heads(self.linear(x, name + "v_proj"), self.kv_heads)
        mixed = ops.scaled_dot_product_attention(
            query,
            self.cached(key, f"past_key_values.{layer}.key"),
            self.cached(value, f"past_key_values.{layer}.value"),
            self.mask,
            causal=False,
        )
        joined = ops.transpose(mixed, vector(0, 2, 1, 3))
        joined = ops.reshape(joined, vector(0, 0, self.heads * self.head_dim), True)
        return self.linear(joined, name + "o_proj")

    def mlp(self, x: Any, name: str) -> Any:
        gate = ops.swish(self.linear(x, name + "gate_proj"))
        return self.linear(ops.multiply(gate, self.linear(x, name + "up_proj")), name + "down_proj")

    def causal_mask(self, ids: Any, kept: Any) -> Any:
        whole = ops.gather(ops.shape_of(kept, "i64"), scalar(1), scalar(0))
        new = ops.gather(ops.shape_of(ids, "i64"), scalar(1), scalar(0))
        columns = ops.range(scalar(0), whole, scalar(1), "i64")
        rows = ops.range(ops.subtract(whole, new), whole, scalar(1), "i64")
        visible = ops.logical_and(
            ops.less_equal(
                ops.unsqueeze(columns, vector(0, 1, 2)), ops.unsqueeze(rows, vector(0, 1, 3))
            ),
            ops.unsqueeze(ops.not_equal(kept, scalar(0)), vector(1, 2)),
        )
        return ops.select(visible, number(0), number(-65504))

    def build(self) -> openvino.Model:
        config = self.config
        ids = parameter("input_ids", Type.i64, [-1, -1])
        kept = parameter("attention_mask", Type.i64, [-1, -1])
        positions = parameter("position_ids", Type.i64, [-1, -1])
        self.beam = parameter("beam_idx", Type.i32, [-1])
        frequencies = config["rope_theta"] ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.outer(np.arange(config["max_position_embeddings"]), frequencies)
        table = np.concatenate([angles, angles], axis=1)
        self.cos, self.sin = (
            ops.unsqueeze(
                ops.gather(ops.constant(turn(table).astype(np.float32)), positions, scalar(0)),
                vector(1),
            )
            for turn in (np.cos, np.sin)
        )
        self.mask = self.causal_mask(ids, kept)
        batch = ops.gather(ops.shape_of(ids, "i64"), vector(0), scalar(0))
        nothing = ops.concat([batch, vector(self.kv_heads, 0, self.head_dim)], 0)
        self.empty = ops.broadcast(number(0), nothing)

        embedding = self.file.get_tensor("model.embed_tokens.weight")
        stored = "f32" if self.precision == "f32" else "bf16"
        x = ops.gather(weight(embedding, stored, self.keep), ids, scalar(0))
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            normed = self.norm(x, name + "input_layernorm")
            x = ops.add(x, self.attention(normed, name + "self_attn.", layer))
            normed = self.norm(x, name + "post_attention_layernorm")
            x = ops.add(x, self.mlp(normed, name + "mlp."))
        logits = Result(self.linear(self.norm(x, "model.norm"), "lm_head").output(0))
        logits.output(0).get_tensor().set_names({"logits"})
        return openvino.Model([logits], self.sinks, [ids, kept, positions, self.beam], "llama")


def prepare(model: Path, precision: str, folder: Path) -> None:
    llama = Llama(model, precision)  # holds the weights that the graph points into
    openvino.save_model(llama.build(), folder / "openvino_model.xml", compress_to_fp16=False)
    pair = convert_tokenizer(AutoTokenizer.from_pretrained(model), with_detokenizer=True)
    for part, name in zip(pair, ("tokenizer", "detokenizer"), strict=True):
        openvino.save_model(part, folder / f"openvino_{name}.xml")
    for name in ("config.json", "generation_config.json"):
        shutil.copy(model / name, folder / name)


class OpenVINOGenAI:
    engine = "openvino-genai"

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        schedule = openvino_genai.SchedulerConfig()
        schedule.max_num_batched_tokens = CAPACITY_TOKENS
        schedule.enable_prefix_caching = False
        schedule.num_kv_blocks = CAPACITY_TOKENS // 32  # tokens of a block on a CPU
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if precision in ARITHMETIC:
            options["INFERENCE_PRECISION_HINT"] = ARITHMETIC[precision]
        if precision in CACHE:
            options["KV_CACHE_PRECISION"] = CACHE[precision]
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(
            str(folder), schedule, "CPU", options
        )
        self.version = f"{openvino_genai.__version__}, openvino {openvino.__version__}"
        self.settings = {
            "arithmetic": ARITHMETIC.get(precision, "its default for this CPU"),
            "KV cache": CACHE.get(precision, "u8 (its default)"),
        }
        self.requests = 0
        self.handles: list[Any] = []

    def begin(self, prompts: Sequence[np.ndarray], steps: int) -> None:
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        options = openvino_genai.GenerationConfig()
        options.max_new_tokens = steps + 1
        options.ignore_eos = True
        options.do_sample = False
        self.handles = []
        for prompt in prompts:
            self.requests += 1
            ids = Tensor(prompt[np.newaxis].astype(np.int64))
            self.handles.append(self.pipeline.add_request(self.requests, ids, options))
        self.pipeline.step()

    def advance(self) -> None:
        self.pipeline.step()

    def generated(self) -> list[list[int]]:
        return [list(handle.read_all()[0].generated_ids) for handle in self.handles]

    def logits(self) -> None:
        """Its interface gives tokens only."""


if __name__ == "__main__":
    main(
        prepare, lambda model, precision, folder, threads: OpenVINOGenAI(folder, precision, threads)
    )
