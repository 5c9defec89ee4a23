"""Conversations with images: offline, served and on the command line, against transformers."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from paddock import LLM, SamplingParams
from paddock.runtime.errors import RequestError
from tests.runtime.server.serving import Serving

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
    reason="torch and transformers are not installed (`make parity` installs them)",
)
SETTINGS = ("dtype=f32", "engine.cache_dtype=f32", "limits.max_tokens_per_step=64")
GREEDY = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)
ASKED = "What is this?"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    from tests.models.saved_vision import save

    folder = tmp_path_factory.mktemp("tiny-llava")
    return folder, save("llava/1", folder)[1]


@pytest.fixture(scope="module")
def llm(saved: tuple[Path, Any], server_home: Path) -> Iterator[LLM]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PADDOCK_HOME", str(server_home))
        with LLM(str(saved[0]), *SETTINGS) as started:
            yield started


@pytest.fixture(scope="module")
def served(
    saved: tuple[Path, Any], environment: dict[str, str], server_home: Path, llm: LLM
) -> Iterator[Serving]:
    bounds = ("server.max_images=2", "server.max_image_pixels=10000", "server.model_names=tiny")
    with Serving(environment, server_home, str(saved[0]), *SETTINGS, *bounds) as started:
        yield started


def files(folder: Path) -> list[Path]:
    """Three pictures."""
    made = []
    for i, size in enumerate([(30, 40), (64, 64), (50, 20)]):
        y, x = np.mgrid[: size[1], : size[0]]
        pixels = np.stack([(x * (i + 3)) % 256, (y * 5) % 256, (x * y + 90 * i) % 256], -1)
        made.append(folder / f"{i}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(made[-1])
    return made


def parts(*images: Any, text: str = ASKED) -> list[dict[str, Any]]:
    seen = [{"type": "image", "image": image} for image in images]
    return [*seen, {"type": "text", "text": text}]


def url(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def sent(*urls: str, text: str = ASKED) -> list[Any]:
    images = [{"type": "image_url", "image_url": {"url": one, "detail": "low"}} for one in urls]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *images]}]


def processor_of(folder: Path, model: Any) -> Any:
    """transformers' own."""
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    vision = model.config.vision_config
    if model.config.model_type == "qwen2_5_vl":
        # Its constructor asks for a processor of videos, which needs torchvision.
        found = transformers.Qwen2_5_VLProcessor.__new__(transformers.Qwen2_5_VLProcessor)
        found.image_processor = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)
        found.tokenizer, found.chat_template, found.video_processor = tokenizer, template, None
        for kind in ("image", "video"):
            token = f"<|{kind}_pad|>"
            setattr(found, f"{kind}_token", token)
            setattr(found, f"{kind}_token_id", tokenizer.convert_tokens_to_ids(token))
        return found
    if model.config.model_type == "idefics3":
        return transformers.Idefics3Processor(
            transformers.Idefics3ImageProcessorPil.from_pretrained(folder),
            tokenizer,
            image_seq_len=(vision.image_size // vision.patch_size // model.config.scale_factor)
            ** 2,
            chat_template=template,
        )
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil.from_pretrained(folder),
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=template,
    )


def expected(folder: Path, model: Any, images: list[Path]) -> tuple[list[int], list[int]]:
    """Prompt and answer by transformers' own processor and `generate`."""
    import torch

    processor = processor_of(folder, model)
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": ASKED}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    given = processor(
        text=text,
        images=[Image.open(file) for file in images] or None,
        return_tensors="pt",
        add_special_tokens=False,
    )
    given.pop("token_type_ids", None)
    with torch.no_grad():
        made = model.generate(
            **given, max_new_tokens=9, min_new_tokens=9, do_sample=False, eos_token_id=None
        )
    count = given["input_ids"].shape[1]
    return given["input_ids"][0].tolist(), made[0, count:].tolist()


@pytest.mark.filterwarnings("ignore")
def test_answers_are_those_of_transformers(
    saved: tuple[Path, Any], llm: LLM, tmp_path: Path
) -> None:
    compare(*saved, llm, files(tmp_path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["idefics3/1", "qwen2_5_vl/1"])
def test_images_in_tiles_and_of_any_size_are_answered_as_by_transformers(
    name: str, tmp_path: Path, server_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.models.saved_vision import save

    monkeypatch.setenv("PADDOCK_HOME", str(server_home))
    (folder := tmp_path / "checkpoint").mkdir()
    model = save(name, folder)[1]
    with LLM(str(folder), *SETTINGS) as llm:
        compare(folder, model, llm, files(tmp_path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mesh", ["mesh=pp2", pytest.param("mesh=tp2", marks=pytest.mark.slow)])
def test_ranks_answer_as_transformers(
    saved: tuple[Path, Any],
    server_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mesh: str,
) -> None:
    """Images go to the ranks with the steps, and none is cut for a stage's share of one."""
    pytest.importorskip("mpi4py", reason="needs an MPI: pip install 'paddock[mpi]'")
    monkeypatch.setenv("PADDOCK_HOME", str(server_home))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    with LLM(str(saved[0]), *SETTINGS, mesh) as llm:
        compare(*saved, llm, files(tmp_path))


def compare(folder: Path, model: Any, llm: LLM, pictures: list[Path]) -> None:
    """Prompts and answers of one image, two and none."""
    assert llm.running.built.manifest["check"]["share"] <= 1
    for images in ([pictures[0]], [pictures[1], pictures[2]], []):
        content: Any = parts(*images) if images else ASKED
        found = llm.chat([{"role": "user", "content": content}], GREEDY)
        prompt, answer = expected(folder, model, images)
        assert list(found.prompt_token_ids) == prompt
        assert list(found.token_ids) == answer
        assert found.usage.prompt_tokens == len(prompt)


def test_a_server_answers_as_the_model_offline(served: Serving, llm: LLM, tmp_path: Path) -> None:
    pictures = files(tmp_path)
    answers = set()
    with served.client() as client:
        for images in ([pictures[0]], [pictures[1], pictures[0]], [pictures[2]]):
            offline = llm.chat([{"role": "user", "content": parts(*images)}], GREEDY)
            answer = client.chat.completions.create(
                model="tiny",
                messages=sent(*map(url, images)),
                max_tokens=9,
                temperature=0,
                extra_body={"ignore_eos": True},
            )
            assert answer.choices[0].message.content == offline.text
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == offline.usage.prompt_tokens
            answers.add(offline.token_ids)
            asked = [{"type": "input_image", "image_url": url(one)} for one in images]
            response = client.responses.create(
                model="tiny",
                input=[
                    {"role": "user", "content": [*asked, {"type": "input_text", "text": ASKED}]}  # type: ignore[list-item, misc]
                ],
                max_output_tokens=9,
                temperature=0,
                extra_body={"ignore_eos": True},
            )
            assert response.output_text == offline.text
            assert response.usage is not None
            assert response.usage.input_tokens == offline.usage.prompt_tokens
    assert len(answers) == 3


@pytest.mark.parametrize(
    ("urls", "text", "message"),
    [
        (["https://example.org/cat.png"], ASKED, "images are not fetched from 'example.org'"),
        (["file:///etc/passwd"], ASKED, "images come in data: URLs here"),
        (["data:image/png;base64,AAAA"], ASKED, "the image cannot be read as JPEG"),
        (["data:image/png;base64,AAAA"] * 3, ASKED, "2 images at most here, this one 3"),
        ([], "<image>", "1 places for images"),
    ],
)
def test_what_cannot_be_seen_is_refused(
    served: Serving, urls: list[str], text: str, message: str
) -> None:
    with served.client() as client, pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(model="tiny", messages=sent(*urls, text=text), max_tokens=3)


def test_a_bomb_is_refused(served: Serving, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(file, "PNG")  # some hundred kilobytes
    (tmp_path / "bomb.png").write_bytes(file.getvalue())
    with (
        served.client() as client,
        pytest.raises(openai.BadRequestError, match="5000 x 5000 pixels, 10000 at most"),
    ):
        client.chat.completions.create(
            model="tiny", messages=sent(url(tmp_path / "bomb.png")), max_tokens=3
        )


def test_a_model_that_reads_sees_nothing(server: Serving, tmp_path: Path) -> None:
    with server.client() as client, pytest.raises(openai.BadRequestError, match="sees no images"):
        client.chat.completions.create(model="demo", messages=sent(url(files(tmp_path)[0])))


def test_images_are_given_on_the_command_line(
    saved: tuple[Path, Any], environment: dict[str, str], llm: LLM, tmp_path: Path
) -> None:
    first, second, _ = files(tmp_path)
    options = ["--max-tokens", "9", "--temperature", "0", "--ignore-eos", "--json"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "paddock", "generate", *arguments, *options],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    images = ("--image", first.name, "--image", str(second))
    done = run(str(saved[0]), *SETTINGS, "-p", ASKED, *images)
    assert done.returncode == 0, done.stderr
    offline = llm.chat([{"role": "user", "content": parts(first, second)}], GREEDY)
    assert json.loads(done.stdout)["token_ids"] == list(offline.token_ids)
    done = run("demo", "-p", ASKED, *images)
    assert done.returncode == 1
    assert "--prompt: the conversation has images, and this model sees none" in done.stderr
    done = run(str(saved[0]), *SETTINGS, "-p", ASKED, "--image", "none.png")
    assert done.returncode == 1
    assert "--prompt: none.png: cannot be read" in done.stderr


def test_offline_models_that_read_see_nothing() -> None:
    with LLM("demo") as llm, pytest.raises(RequestError, match="and this model sees none"):
        llm.chat([{"role": "user", "content": parts(b"")}])
