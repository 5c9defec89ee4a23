"""`paddock compare` names the layer in which a fault was planted, and the error's shape."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddock.__main__ import main
from paddock.graph import Module
from paddock.models.registry import Architecture
from paddock.recipes.compose import compose
from paddock.recipes.errors import RecipeError
from paddock.recipes.parity.compare import Comparison, compare
from paddock.recipes.parity.difference import difference
from paddock.weights import Fuse, Rule, Transpose

TOLERANCE = 1e-4
LLAMA = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "sliding_window": 9,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.05,
    "tie_word_embeddings": False,
}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "layer_norm_eps": 0.05,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that transformers saved, by architecture."""
    pytest.importorskip("torch", reason="torch is not installed: `make parity`")
    pytest.importorskip("transformers", reason="no transformers: `make parity`")
    from tests.models.published import made

    found = {}
    for config in (LLAMA, BERT):
        name = str(config["model_type"])
        found[name] = tmp_path_factory.mktemp(name)
        made(config, 0).save_pretrained(found[name])
    return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path / "home"))


def compared(folder: Path, *overrides: str, against: str = "auto") -> Comparison:
    recipe = compose("auto", (f"checkpoint={folder}", "dtype=f32", *overrides)).recipe
    return compare(recipe, 37, TOLERANCE, against)


Plant = Callable[[Any], None]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plant], None]:
    """Change every model that is built from now on."""

    def change(how: Plant) -> None:
        whole = Architecture.build

        def build(self: Architecture) -> Module:
            model = whole(self)
            how(model)
            return model

        monkeypatch.setattr(Architecture, "build", build)

    return change


@pytest.fixture
def plant_in_map(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, tuple[Rule, ...]], None]:
    def change(weight_map: str, rules: tuple[Rule, ...]) -> None:
        monkeypatch.setattr(importlib.import_module(weight_map), "HUGGING_FACE", rules)

    return change


@pytest.mark.parametrize("engine", ["reference", "openvino"])
@pytest.mark.parametrize("name", ["mistral", "bert"])
def test_a_right_model_agrees_at_every_block(
    folders: dict[str, Path], name: str, engine: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="the openvino engine needs openvino")
    exact = ["engine.cache_dtype=f32"] if engine == "openvino" else []
    found = compared(folders[name], f"engine={engine}", *exact)
    assert found.fault is None
    assert found.reference.startswith("transformers")
    blocks = [v for v in found.values if v.is_trunk]
    assert len(blocks) >= 6
    assert all(v.error < TOLERANCE for v in blocks)
    assert all(v.expected.std() > 0 for v in found.values)


# --- faults in layers ---------------------------------------------------------------------------

ATTENTION = "model.layers.1.self_attn"


def _no_rotary(model: Any) -> None:
    model.model.layers[1].self_attn.rotary = None


def _no_scale(model: Any) -> None:
    model.model.layers[1].self_attn.scale = 1.0


def _window_off_by_one(model: Any) -> None:
    model.model.layers[1].self_attn.window = 10


def _other_eps(model: Any) -> None:
    model.model.layers[1].post_attention_layernorm.eps = 0.02


def _residual_scaled(model: Any) -> None:
    model.model.layers[1].residual = 0.5


def _head_scaled(model: Any) -> None:
    model.lm_head.scale = 3.0


@pytest.mark.parametrize(
    ("how", "module", "said"),
    [
        (_no_rotary, ATTENTION, "rows differ from 1 on"),
        (_no_scale, ATTENTION, "rows differ from 1 on"),
        (_window_off_by_one, ATTENTION, "rows differ from 9 on"),
        (_other_eps, "model.layers.1.post_attention_layernorm", "each row is a multiple"),
        (_residual_scaled, "model.layers.1", "all rows differ"),
        (_head_scaled, "", "it is 3 times"),
    ],
)
def test_a_layer_with_a_fault_is_named(
    folders: dict[str, Path], plant: Callable[[Plant], None], how: Plant, module: str, said: str
) -> None:
    plant(how)
    fault = compared(folders["mistral"], "engine=reference").fault
    assert fault is not None
    assert fault.module == module or (not module and fault.at.path in ("", "lm_head"))
    assert any(said in sentence for sentence in fault.difference.sentences())


def test_an_encoder_with_a_fault_is_named(
    folders: dict[str, Path], plant: Callable[[Plant], None]
) -> None:
    def other_eps(model: Any) -> None:
        model.bert.encoder.layer[2].output_norm.eps = 0.5

    plant(other_eps)
    fault = compared(folders["bert"], "engine=reference").fault
    assert fault is not None
    assert fault.module == "bert.encoder.layer.2.output_norm"


# --- faults in maps -----------------------------------------------------------------------------


def test_a_transposed_weight_is_named(
    folders: dict[str, Path], plant_in_map: Callable[[str, tuple[Rule, ...]], None]
) -> None:
    from paddock.weights.llama import HUGGING_FACE

    plant_in_map("paddock.weights.llama", (*HUGGING_FACE, Transpose("o_proj.weight")))
    fault = compared(folders["mistral"], "engine=reference").fault
    assert fault is not None
    assert str(fault.at) == "model.layers.0.self_attn.o_proj"
    assert fault.module == "model.layers.0.self_attn.o_proj"
    assert len(fault.difference.rows) == fault.difference.row_count


@pytest.mark.parametrize(
    ("slot", "parts", "module"),
    [
        ("qkv_proj", {"q": "k_proj", "k": "q_proj", "v": "v_proj"}, "self_attn"),
        ("gate_up_proj", {"gate": "up_proj", "up": "gate_proj"}, "mlp"),
    ],
)
def test_swapped_parts_are_named(
    folders: dict[str, Path],
    plant_in_map: Callable[[str, tuple[Rule, ...]], None],
    slot: str,
    parts: dict[str, str],
    module: str,
) -> None:
    from paddock.weights.llama import HUGGING_FACE

    others = tuple(r for r in HUGGING_FACE if not (isinstance(r, Fuse) and r.into == slot))
    plant_in_map("paddock.weights.llama", (Fuse(slot, parts), *others))
    fault = compared(folders["mistral"], "engine=reference").fault
    assert fault is not None
    assert fault.module == f"model.layers.0.{module}"
    assert slot in fault.after


# --- the shape of errors ------------------------------------------------------------------------

EXPECTED = np.random.default_rng(0).standard_normal((12, 24))


def _one_head(x: Any) -> Any:
    x = x.copy()
    x[3:, 8:16] += 0.1 * np.random.default_rng(1).standard_normal((9, 8))
    return x


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (-EXPECTED, "the sign is the opposite"),
        (2.5 * EXPECTED, "it is 2.5 times"),
        (EXPECTED + np.arange(24), "as a bias would make it"),
        (EXPECTED * np.arange(1, 25), "each column is a multiple"),
        (EXPECTED[:, np.random.default_rng(2).permutation(24)], "in another order"),
        (0 * EXPECTED, "it is zero throughout"),
        (np.where(EXPECTED > 2, np.nan, EXPECTED), "values are no numbers"),
        (_one_head(EXPECTED), "only in heads 1"),
        (_one_head(EXPECTED), "rows differ from 3 on"),
    ],
)
def test_the_shape_of_an_error_is_told(found: Any, said: str) -> None:
    shape = difference(found, EXPECTED, TOLERANCE, head_size=8)
    assert any(said in sentence for sentence in shape.sentences()), shape.sentences()


def test_the_picture_shows_where() -> None:
    shape = difference(_one_head(EXPECTED), EXPECTED, TOLERANCE)
    assert [line.partition("|")[2][:-1].strip() != "" for line in shape.picture] == [
        i >= 3 for i in range(12)
    ]
    assert all(not line.partition("|")[2][:8].strip() for line in shape.picture)


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_the_fault(
    folders: dict[str, Path], plant: Callable[[Plant], None], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", "auto", "--checkpoint", str(folders["mistral"]), "engine=reference"]
    assert main(arguments) == 0
    assert "they agree" in capsys.readouterr().out
    plant(_no_scale)
    assert main(arguments) == 1
    assert f"look in {ATTENTION}" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert not record["agrees"]
    assert record["fault"]["module"] == ATTENTION


def test_without_transformers_class_the_numpy_engine_is_the_reference(
    folders: dict[str, Path],
) -> None:
    found = compared(folders["mistral"], "engine=reference", against="f64")
    assert found.reference == "reference (f64)"
    assert found.fault is None
    assert any(v.path.endswith("rotary") for v in found.values)
    assert max(v.error for v in found.values) > 0


def test_tokens_that_do_not_exist_are_refused(folders: dict[str, Path]) -> None:
    recipe = compose("auto", (f"checkpoint={folders['mistral']}", "engine=reference")).recipe
    with pytest.raises(RecipeError, match="token ids must be 0 to 63"):
        compare(recipe, [1, 64], TOLERANCE)
