"""Whatever is wrong with a checkpoint, the hub, the disk: one line, exit code 1, nothing left."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from paddock.recipes.pipeline import DEMO
from tests.paddock.conftest import Run
from tests.paddock.test_cli import failed
from tests.weights.test_hub import COMMIT, Handler, Hub, serve

Damage = Callable[[Path], None]
DOWN = "model.layers.3.mlp.down_proj.weight"


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        found = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))

    return damage


def tensors(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        arrays = load_file(file)
        change(arrays)
        save_file(arrays, file)

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """The data stay as they are; only what the header says of them changes."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        described = json.loads(content[8 : 8 + length])
        change(described)
        text = json.dumps(described).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return damage


def content(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def absent_shard(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    shards[DOWN] = "model-00002-of-00002.safetensors"
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def twice(text: bytes) -> bytes:
    """One name, two times in the header."""
    (length,) = struct.unpack("<Q", text[:8])
    described = text[8 : 8 + length].rstrip()
    again = b',"model.norm.weight":{"dtype":"BF16","shape":[256],"data_offsets":[0,512]}}'
    described = described[:-1] + again
    return struct.pack("<Q", len(described)) + described + text[8 + length :]


CASES: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "unknown architecture": (
        config(architectures=["LamaForCausalLM"]),
        ("LamaForCausalLM", "LlamaForCausalLM"),
    ),
    "a field that changes the mathematics": (config(attn_temperature=3), ("attn_temperature",)),
    "a size that does not fit": (config(intermediate_size=700), ("gate_proj", "700", "768")),
    "a size that is none": (config(hidden_size="big"), ("hidden_size", "big")),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("config.json",)),
    "config that is no JSON": (content("config.json", lambda _: b"{,"), ("config.json",)),
    "config that is no UTF-8": (content("config.json", lambda _: b"\xff\xfe"), ("config.json",)),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ("tokenizer.json",)),
    "a damaged tokenizer": (
        content("tokenizer.json", lambda text: text[: len(text) // 2]),
        ("tokenizer.json",),
    ),
    "missing tensor": (tensors(lambda arrays: arrays.pop(DOWN)), (DOWN,)),
    "renamed tensor": (
        tensors(lambda arrays: arrays.update({DOWN.replace("down", "dwn"): arrays.pop(DOWN)})),
        (DOWN, "dwn_proj"),
    ),
    "extra tensor": (
        tensors(lambda arrays: arrays.update({"model.extra.weight": np.zeros(3, np.float32)})),
        ("model.extra.weight",),
    ),
    "misshapen tensor": (
        tensors(lambda arrays: arrays.update({DOWN: arrays[DOWN][:, :-1].copy()})),
        (DOWN, "768", "767"),
    ),
    "wrong type": (
        tensors(lambda arrays: arrays.update({DOWN: arrays[DOWN].astype(np.int64)})),
        (DOWN, "I64"),
    ),
    "truncated": (content("model.safetensors", lambda b: b[:-1000]), ("model.safetensors",)),
    "empty file": (content("model.safetensors", lambda b: b""), ("model.safetensors",)),
    "header beyond the file": (
        content("model.safetensors", lambda b: struct.pack("<Q", 1 << 40) + b[8:]),
        ("model.safetensors", str(1 << 40)),
    ),
    "header that is no JSON": (
        content("model.safetensors", lambda b: b[:8] + b"}" + b[9:]),
        ("model.safetensors",),
    ),
    "overlapping offsets": (
        header(lambda d: d[DOWN].update(data_offsets=d["model.norm.weight"]["data_offsets"])),
        (DOWN,),
    ),
    "offsets beyond the file": (
        header(lambda d: d[DOWN].update(data_offsets=[1 << 40, (1 << 40) + 393216])),
        (DOWN,),
    ),
    "negative offsets": (header(lambda d: d[DOWN].update(data_offsets=[-8, 393208])), (DOWN,)),
    "a shape that lies": (header(lambda d: d[DOWN].update(shape=[256, 1 << 40])), (DOWN,)),
    "a type that is none": (header(lambda d: d[DOWN].update(dtype="F7")), (DOWN, "F7")),
    "an absurd name": (
        header(lambda d: d.update({"x" * 100_000: d.pop(DOWN)})),
        ("model.safetensors",),
    ),
    "a name twice": (content("model.safetensors", twice), ("model.norm.weight",)),
    "only a pickle": (only_a_pickle, ("pytorch_model.bin", "safetensors")),
    "an absent shard": (absent_shard, ("model-00002-of-00002.safetensors",)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_checkpoint(paddock: Run, tmp_path: Path, case: str) -> None:
    damage, named = CASES[case]
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)
    damage(model)
    home = tmp_path / "home"
    done = paddock("generate", "./model", "dtype=f32", "-p", "x", "-q", PADDOCK_HOME=str(home))
    message = failed(done, 1)
    assert len(message) < 1500
    for word in named:
        assert word in message
    assert built_in(home) == []


def built_in(home: Path) -> list[Path]:
    """Engines and weights, whole or half-written; the hashes of files may stay."""
    return [
        entry
        for shelf in ("engines", "weights")
        if (home / shelf).is_dir()
        for entry in (home / shelf).iterdir()
        if entry.name != ".locks"
    ]


def test_a_bad_chat_template_is_found_before_anything_is_built(
    paddock: Run, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    for number, wrong in enumerate((b"", b"{{ raise_exception('no') }}{% endfor %}")):
        model = tmp_path / f"model-{number}"
        shutil.copytree(DEMO, model)
        file = model / "tokenizer_config.json"
        file.write_bytes(file.read_bytes().replace(b"{% endfor %}", wrong))
        for command in (["generate", "--chat", "-p", "x"], ["chat"]):
            done = paddock(*command, f"./model-{number}", "-q", PADDOCK_HOME=str(home))
            assert "template" in failed(done, 1)
    without = tmp_path / "without"
    shutil.copytree(DEMO, without)
    content("tokenizer_config.json", lambda b: b.replace(b"chat_template", b"other"))(without)
    done = paddock("chat", "./without", "-q", PADDOCK_HOME=str(home))
    assert "no chat template" in failed(done, 1)
    assert built_in(home) == []


def test_a_weight_that_is_not_a_number_is_a_warning(paddock: Run, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO, model)

    def spoil(arrays: dict[str, Any]) -> None:
        arrays[DOWN][3, 4] = ml_dtypes.bfloat16(np.nan)

    tensors(spoil)(model)
    home = str(tmp_path / "home")
    done = paddock("build", "./model", "dtype=f32", "verify=false", "-q", PADDOCK_HOME=home)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("paddock: warning: ")
    assert DOWN in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("./nowhere", "nowhere"),
        ("./a/b/c", "a/b/c"),
        ("Org/Name", "HF_HUB_OFFLINE"),  # which is set
        ("Org/Na me", "Na me"),
    ],
)
def test_no_such_checkpoint(paddock: Run, tmp_path: Path, name: str, expected: str) -> None:
    home = tmp_path / "home"
    variables = {"PADDOCK_HOME": str(home), "HF_HOME": str(tmp_path / "hf")}
    assert expected in failed(paddock("build", name, "-q", **variables), 1)
    assert built_in(home) == []


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[Hub, dict[str, str]]]:
    """A hub on this machine, and the environment that leads there."""
    files = {f.name: f.read_bytes() for f in DEMO.iterdir()}
    hub = Hub({"org/demo": {COMMIT: files}, "org/gated": {COMMIT: files}}, gated={"org/gated"})
    storage = serve(type("Storage", (Handler,), {"hub": hub, "kind": "storage"}))
    address = f"http://127.0.0.1:{storage.server_address[1]}"
    front = serve(type("Front", (Handler,), {"hub": hub, "kind": "hub", "storage": address}))
    yield (
        hub,
        {
            "HF_ENDPOINT": f"http://127.0.0.1:{front.server_address[1]}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        },
    )
    for server in (front, storage):
        server.shutdown()
        server.server_close()


def test_a_hub_repository_is_fetched_and_runs(
    paddock: Run, tmp_path: Path, hub: tuple[Hub, dict[str, str]]
) -> None:
    variables = hub[1] | {"HF_HOME": str(tmp_path / "hf")}
    arguments = ["-p", "The ls command", "--max-tokens", "8", "-q"]
    done = paddock("generate", "org/demo", "dtype=f32", *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == paddock("generate", "demo", *arguments).stdout


def test_what_the_hub_refuses(
    paddock: Run, tmp_path: Path, hub: tuple[Hub, dict[str, str]]
) -> None:
    variables = hub[1] | {"HF_HOME": str(tmp_path / "hf"), "PADDOCK_HOME": str(tmp_path / "home")}
    for name, *expected in (
        ("org/absent", "org/absent", "token"),
        ("org/gated", "org/gated", "HF_TOKEN"),
        ("org/demo@nowhere", "nowhere"),
    ):
        message = failed(paddock("build", name, "-q", **variables), 1)
        assert all(word in message for word in expected), message
    assert built_in(tmp_path / "home") == []


def test_a_connection_that_is_cut_goes_on_later(
    paddock: Run, tmp_path: Path, hub: tuple[Hub, dict[str, str]]
) -> None:
    server, address = hub
    variables = address | {"HF_HOME": str(tmp_path / "hf"), "PADDOCK_HOME": str(tmp_path / "home")}
    server.clear()
    server.cuts = [400_000]
    done = paddock("build", "org/demo", "dtype=f32", "-q", **variables)
    assert done.returncode == 0, done.stderr
    ranges = [call[2] for call in server.asked if call[0] == "storage" and call[2]]
    assert ranges == ["bytes=400000-"] or len(server.calls("GET /lfs/")) >= 2


def test_a_full_disk_leaves_nothing(paddock: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=18m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    try:
        done = paddock("build", "demo", "-q", PADDOCK_HOME=str(disk / "home"))
        assert "free" in failed(done, 1)
        assert "PADDOCK_HOME" in done.stderr
        assert built_in(disk / "home") == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_cache_that_cannot_be_written(paddock: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = paddock("build", "demo", "-q", PADDOCK_HOME=str(tmp_path / "file" / "home"))
    assert "file" in failed(done, 1)


def test_two_builds_at_once_build_once(environment: dict[str, str], tmp_path: Path) -> None:
    variables = environment | {"PADDOCK_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "paddock", "build", "demo", "--json"]
    both = [
        subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    reports = [json.loads(stdout) for stdout, _ in outputs]
    assert reports[0]["folder"] == reports[1]["folder"]
    assert sorted(report["cached"] for report in reports) == [False, True]
    assert len(built_in(tmp_path / "home")) == 2  # an engine and its weights


def test_a_killed_build_is_cleared_away_by_the_next(
    environment: dict[str, str], paddock: Run, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    started = subprocess.Popen(
        [sys.executable, "-m", "paddock", "build", "demo", "-q"],
        env=environment | {"PADDOCK_HOME": str(home)},
        stdout=subprocess.DEVNULL,
    )
    while started.poll() is None and not any((home / "weights").glob(".building-*")):
        time.sleep(0.001)
    started.kill()
    started.wait()
    assert paddock("build", "demo", PADDOCK_HOME=str(home)).stdout.startswith("built: ")
    assert len(built_in(home)) == 2


def test_recipes_of_ones_own_that_are_wrong(paddock: Run, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    cases: dict[str, tuple[bytes, str]] = {
        "key": (b"defaults: [demo, _self_]\nlimts: {}\n", "limts"),
        "value": (b"defaults: [demo, _self_]\nlimits: {max_context: many}\n", "max_context"),
        "yaml": (b"defaults: [demo, _self_\n", "yaml"),
        "bytes": (b"summary: \xff\n", "UTF-8"),
        "itself": (b"defaults: [itself, _self_]\n", "itself"),
        "base": (b"defaults: [dmo, _self_]\n", "dmo"),
    }
    for name, (text, expected) in cases.items():
        (own / f"{name}.yaml").write_bytes(text)
        message = failed(paddock("show", name, "--config-dir", own), 2)
        assert expected in message, message
