"""Whole journey against transformers: the same tokens for the demo and the target checkpoint."""

from pathlib import Path

import pytest

from paddock import LLM, SamplingParams

torch = pytest.importorskip("torch", reason="torch is not installed: `make parity`")
transformers = pytest.importorskip("transformers", reason="no transformers: `make parity`")

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "paddock" / "demo"
TARGET = ROOT.parent / "shared" / "checkpoints" / "target"
LENGTH = 64
PROMPTS = [
    "The ls command",
    "A Debian package is",
    "To copy a file, use",
    "In the beginning",
    "The kernel loads",
    "Regular expressions are",
    "This function returns",
    "If the file does not exist,",
    "The following options are available:",
    "DESCRIPTION\n",
    "Python is a programming language",
    "SELECT name FROM",
    "The network interface",
    "A process may",
    "Copyright (C)",
    "For more information, see",
    "Note that",
    "1. Install the package\n2.",
    "The value of x is",
    "<|user|>What is apt?<|assistant|>",
    "Users and groups",
    "é, ü and 漢字 are",
]


def test_demo_writes_what_transformers_writes(home: Path) -> None:
    _compare("demo", DEMO, "openvino", PROMPTS)


def test_target_writes_what_transformers_writes(home: Path) -> None:
    if not TARGET.is_dir():
        pytest.skip("the target checkpoint is not beside the project")
    _compare(str(TARGET), TARGET, "openvino", PROMPTS)


def test_reference_engine_writes_what_transformers_writes(home: Path) -> None:
    _compare("demo", DEMO, "reference", PROMPTS[:4])  # it takes half a second a token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PADDOCK_HOME", str(tmp_path))
    return tmp_path


def _compare(name: str, checkpoint: Path, engine: str, texts: list[str]) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    with LLM(name, f"engine={engine}", "dtype=f32") as llm:
        ours = [c.token_ids for c in llm.generate(texts, greedy)]
        prompts = [llm.tokenizer.encode(text) for text in texts]
    assert ours == [tuple(ids) for ids in _transformers_tokens(checkpoint, prompts)]


def _transformers_tokens(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    torch.set_num_threads(1)  # a model this small only waits for its threads
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    texts = []
    for ids in prompts:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=LENGTH,
                min_new_tokens=LENGTH,  # it never ends early, as `ignore_eos` has it
                do_sample=False,
                eos_token_id=[],
                pad_token_id=2,
            )
        texts.append(out[0, len(ids) :].tolist())
    return texts
