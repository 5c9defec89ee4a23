"""docs/add-a-model.md followed: an architecture outside Paddock, against transformers."""

import json
import shutil
from pathlib import Path

import pytest

from paddock import LLM, SamplingParams
from paddock.models.config import ConfigError

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PROMPTS = [[5, 17, 99, 1024, 7], [3, 60, 61, 62], list(range(100, 140))]


@pytest.fixture
def cwm(tmp_path: Path) -> Path:
    """A tiny random CWM with windows that show, saved by transformers."""
    torch = pytest.importorskip("torch", reason="torch is not installed: `make parity`")
    transformers = pytest.importorskip("transformers", reason="no transformers: `make parity`")
    torch.manual_seed(0)
    config = transformers.CwmConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        head_dim=16,
        sliding_window=5,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    folder = tmp_path / "cwm-tiny"
    transformers.CwmForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "paddock" / "demo" / name, folder)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path / "home"))


def test_an_unknown_architecture_says_how_to_add_it(cwm: Path) -> None:
    with pytest.raises(ConfigError, match=r"'CwmForCausalLM' is not in the zoo.*add-a-model"):
        LLM(str(cwm))


@pytest.mark.parametrize("engine", ["reference", "openvino"])
def test_the_example_writes_what_transformers_writes(
    cwm: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import transformers

    from paddock.models import registry

    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(registry, "ARCHITECTURES", dict(registry.ARCHITECTURES))
    monkeypatch.delitem(__import__("sys").modules, "cwm", raising=False)
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    with LLM(str(cwm), "plugins=cwm", f"engine={engine}", "dtype=f32") as llm:
        ours = [c.token_ids for c in llm.generate(PROMPTS, params)]
    model = transformers.AutoModelForCausalLM.from_pretrained(cwm, dtype=torch.float32)
    for prompt, tokens in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            greedy = model(ids).logits[0].argmax(-1)[len(prompt) - 1 : -1]
        assert greedy.tolist() == list(tokens)


def test_the_entry_point_of_the_page_is_the_registrys() -> None:
    from paddock.models.registry import ENTRY_POINT_GROUP

    page = (ROOT / "docs" / "add-a-model.md").read_text("utf-8")
    assert f'[project.entry-points."{ENTRY_POINT_GROUP}"]' in page


def test_a_field_that_is_not_read_would_be_refused(cwm: Path) -> None:
    config = json.loads((cwm / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (cwm / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"sliding_window|layer_types"):
        LLM(str(cwm))
