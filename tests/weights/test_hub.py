"""Downloads through the real huggingface_hub, against a server here that speaks the hub's HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save

COMMIT, OLDER = "a" * 40, "b" * 40
BIG = 3_000_000  # bytes of weights, so that a cut connection leaves some behind

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}).encode()


def weights(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 255, BIG, np.uint8)
    return save({f"w{seed}": values})


def sharded(*absent: str) -> dict[str, bytes]:
    shards = {"model-00001-of-00002.safetensors": 1, "model-00002-of-00002.safetensors": 2}
    index = {"metadata": {}, "weight_map": {f"w{seed}": name for name, seed in shards.items()}}
    files = {name: weights(seed) for name, seed in shards.items() if name not in absent}
    return {
        "config.json": CONFIG,
        "tokenizer.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "README.md": b"words",
        "modeling_evil.py": b"raise SystemExit",
        "pytorch_model.bin": b"\x80\x04",
        **files,
    }


SINGLE = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": weights(0)}

MODULES = [
    {"path": ""},
    {"path": "1_Pooling"},
    {"path": "2_Dense"},
    {"path": "../x"},
    {"path": "3"},
]
SENTENCES = {
    "modules.json": json.dumps(MODULES).encode(),
    "sentence_bert_config.json": b"{}",
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "2_Dense/config.json": b"{}",
    "2_Dense/model.safetensors": weights(3),
    "2_Dense/pytorch_model.bin": b"pickle",
    "onnx/config.json": b"{}",
}


@dataclass
class Hub:
    """Repositories, what goes wrong, and what was asked."""

    repos: dict[str, dict[str, dict[str, bytes]]]  # repo -> commit -> files
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "old": OLDER})
    gated: set[str] = field(default_factory=set)
    allowed: str = "hf_good"  # the token that may read gated repositories
    cuts: list[int] = field(default_factory=list)  # bytes after which coming responses break off
    always_cut: int | None = None
    reset: bool = False  # break off as a crashed host does, not as one that shuts down
    expired: int = 0  # how many signed addresses are refused
    wrong: bytes | None = None  # instead of the data of large files
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)
    # ^ server, "METHOD path", Range, Authorization
    sent: int = 0  # bytes of large files

    def clear(self) -> None:
        self.asked.clear()
        self.cuts.clear()
        self.always_cut, self.expired, self.wrong, self.sent = None, 0, None, 0
        self.reset = False

    def calls(self, pattern: str) -> list[tuple[str, str, str, str]]:
        return [call for call in self.asked if re.search(pattern, call[1])]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    kind: str
    storage: str  # address of the storage server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        authorization = self.headers.get("Authorization", "")
        call = (self.kind, f"{self.command} {path}", self.headers.get("Range", ""), authorization)
        self.hub.asked.append(call)
        if self.kind == "storage":
            return self.storage_file(path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/([^/]+))?", path):
            return self.info(found[1], found[3] or "main")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            return self.tree(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(found[1], found[2], found[3])
        return self.answer(404, b"{}")

    do_HEAD = do_GET

    def info(self, repo: str, revision: str) -> None:
        if self.missing(repo):
            return
        commit = self.hub.branches.get(revision, revision)
        if commit not in self.hub.repos[repo]:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        self.answer(200, json.dumps({"id": repo, "sha": commit, "siblings": []}).encode())

    def tree(self, repo: str, revision: str) -> None:
        if self.missing(repo):
            return
        files = self.hub.repos[repo][revision]
        rows: list[dict[str, Any]] = [{"type": "directory", "oid": "0" * 40, "path": "original"}]
        for name, data in files.items():
            if "/" in name and "recursive=true" not in self.path.lower():
                continue
            row = {"type": "file", "oid": git_id(data), "size": len(data), "path": name}
            if name.endswith(".safetensors"):
                row["lfs"] = {"oid": sha(data), "size": len(data), "pointerSize": 135}
            rows.append(row)
        self.answer(200, json.dumps(rows).encode())

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if self.missing(repo):
            return
        if repo in self.hub.gated:
            authorization = self.headers.get("Authorization")
            if authorization != f"Bearer {self.hub.allowed}":
                status = 401 if authorization is None else 403
                return self.refuse(status, "GatedRepo", f"Access to model {repo} is restricted.")
        commit = self.hub.branches.get(revision, revision)
        files = self.hub.repos[repo][commit]
        if name not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        data = files[name]
        if name.endswith(".safetensors"):
            self.send_response(302)
            self.send_header("Location", f"{self.storage}/lfs/{sha(data)}?signature=x")
            self.send_header("X-Linked-Etag", f'"{sha(data)}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.answer(200, data, {"ETag": f'"{git_id(data)}"', "X-Repo-Commit": commit})

    def storage_file(self, path: str) -> None:
        every = (
            f
            for commits in self.hub.repos.values()
            for files in commits.values()
            for f in files.values()
        )
        data = next(data for data in every if path == f"/lfs/{sha(data)}")
        if self.hub.expired and self.command == "GET":
            self.hub.expired -= 1
            return self.answer(403, b"Request has expired")
        if self.hub.wrong is not None:
            data = self.hub.wrong[: len(data)].ljust(len(data), b"\0")
        start = 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
        body = data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cuts.pop(0) if self.hub.cuts else self.hub.always_cut
        if cut is not None and cut < len(body):
            body = body[:cut]
            self.close_connection = True
        self.hub.sent += len(body)
        self.wfile.write(body)
        if self.close_connection:
            self.wfile.flush()
            if self.hub.reset:
                time.sleep(0.05)  # what was sent is on its way
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(self.connection.detach())
            else:
                self.connection.shutdown(socket.SHUT_RDWR)

    def missing(self, repo: str) -> bool:
        if repo in self.hub.repos:
            return False
        # Without a token the hub does not tell an absent repository from a private one.
        status = 404 if self.headers.get("Authorization") else 401
        self.refuse(status, "RepoNotFound", "Repository not found")
        return True

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.answer(status, json.dumps({"error": message}).encode(), headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


CLIENT = """
import json, sys, time, logging
from pathlib import Path
logging.disable(logging.WARNING)
time.sleep = lambda seconds: None  # between attempts
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 100_000  # it writes, and so keeps, whole chunks: 10 MB otherwise
from paddock.weights import WeightError, fetch
for line in sys.stdin:
    request = json.loads(line)
    seen = []
    try:
        if request.pop("refuse", False):
            def check(config):
                raise WeightError(f"unknown {config['model_type']}")
            request["check"] = check
        if request.pop("report", False):
            request["progress"] = lambda done, total: seen.append((done, total))
        else:
            request["progress"] = False
        found = fetch(**request)
        answer = {"folder": str(found.folder), "repo": found.repo, "commit": found.commit}
    except WeightError as error:
        answer = {"error": str(error)}
    print(json.dumps({**answer, "seen": seen}), flush=True)
"""


@dataclass
class Client:
    """A process with the hub's address in its environment, as huggingface_hub reads it."""

    process: subprocess.Popen[str]
    cache: Path

    def fetch(self, checkpoint: str, **options: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"checkpoint": checkpoint, "cache_dir": str(self.cache), **options}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def error(self, checkpoint: str, **options: Any) -> str:
        answer = self.fetch(checkpoint, **options)
        assert "error" in answer, answer
        message: str = answer["error"]
        assert "\n" not in message
        return message


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Hub, str]]:
    hub = Hub({})
    storage = serve(type("Storage", (Handler,), {"hub": hub, "kind": "storage"}))
    storage_url = f"http://127.0.0.1:{storage.server_address[1]}"
    front = serve(type("Front", (Handler,), {"hub": hub, "kind": "hub", "storage": storage_url}))
    yield hub, f"http://127.0.0.1:{front.server_address[1]}"
    for server in (front, storage):
        server.shutdown()
        server.server_close()


def serve(handler: type[Handler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def start(endpoint: str, home: Path, **environment: str) -> subprocess.Popen[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **inherited,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        },
    )


def stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


@pytest.fixture(scope="module")
def process(
    servers: tuple[Hub, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[str]]:
    process = start(servers[1], tmp_path_factory.mktemp("home"))
    yield process
    stop(process)


@pytest.fixture
def hub(servers: tuple[Hub, str]) -> Hub:
    hub = servers[0]
    hub.clear()
    hub.gated = {"org/gated"}
    hub.branches = {"main": COMMIT, "old": OLDER}
    hub.repos = {
        "org/single": {COMMIT: SINGLE, OLDER: {**SINGLE, "model.safetensors": weights(9)}},
        "org/sharded": {COMMIT: sharded()},
        "org/broken": {COMMIT: sharded("model-00002-of-00002.safetensors")},
        "org/gated": {COMMIT: SINGLE},
        "org/pickle": {COMMIT: {"config.json": CONFIG, "pytorch_model.bin": b"\x80\x04"}},
        "org/gguf": {COMMIT: {"model-Q4_K_M.gguf": b"GGUF"}},
        "org/sentences": {COMMIT: {**SINGLE, **SENTENCES}},
        "org/bare": {COMMIT: {"model.safetensors": weights(0)}},
    }
    return hub


@pytest.fixture
def client(process: subprocess.Popen[str], tmp_path: Path) -> Client:
    return Client(process, tmp_path / "cache")


def test_single_file(hub: Hub, client: Client) -> None:
    found = client.fetch("org/single", report=True)
    assert (found["repo"], found["commit"]) == ("org/single", COMMIT)
    folder = Path(found["folder"])
    assert sorted(p.name for p in folder.iterdir()) == sorted(SINGLE)
    assert all((folder / name).read_bytes() == data for name, data in SINGLE.items())
    size = len(SINGLE["model.safetensors"])
    assert found["seen"][-1] == [size, size]
    assert [done for done, _ in found["seen"]] == sorted(done for done, _ in found["seen"])


def test_shards_and_only_what_is_needed(hub: Hub, client: Client) -> None:
    folder = Path(client.fetch("org/sharded")["folder"])
    wanted = {n for n in sharded() if n.endswith((".json", ".safetensors"))}
    assert {p.name for p in folder.iterdir()} == wanted
    assert not hub.calls(r"bin|\.py|README")
    assert hub.sent == sum(len(data) for name, data in sharded().items() if "0000" in name)


def test_modules_of_sentence_transformers_come_along(hub: Hub, client: Client) -> None:
    folder = Path(client.fetch("org/sentences")["folder"])
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    unwanted = {"2_Dense/pytorch_model.bin", "onnx/config.json"}
    assert found == {*SINGLE, *SENTENCES} - unwanted
    assert all((folder / name).read_bytes() == SENTENCES[name] for name in found - {*SINGLE})
    assert not hub.calls("bin|onnx|x/")


def test_config_comes_first_and_may_stop_everything(hub: Hub, client: Client) -> None:
    assert client.error("org/single", refuse=True) == "unknown llama"
    assert hub.calls("/config.json")
    assert not hub.calls(r"/lfs/|model\.safetensors|tokenizer")


def test_revision_is_pinned(hub: Hub, client: Client) -> None:
    found = client.fetch("org/single@old")
    assert found["commit"] == OLDER
    assert (Path(found["folder"]) / "model.safetensors").read_bytes() == weights(9)
    files = hub.calls("/resolve/")
    assert files
    assert all(f"/resolve/{OLDER}/" in call[1] for call in files)
    assert client.fetch("org/single", revision=OLDER)["folder"] == found["folder"]


def test_a_branch_that_moved_is_fetched_anew(hub: Hub, client: Client) -> None:
    hub.branches["main"] = OLDER
    first = client.fetch("org/single")
    hub.branches["main"] = COMMIT
    second = client.fetch("org/single")
    assert (first["commit"], second["commit"]) == (OLDER, COMMIT)
    assert (Path(second["folder"]) / "model.safetensors").read_bytes() == weights(0)


def test_a_second_time_asks_for_the_commit_alone(hub: Hub, client: Client) -> None:
    folder = client.fetch("org/sharded")["folder"]
    hub.clear()
    assert client.fetch("org/sharded")["folder"] == folder
    assert [call[1] for call in hub.asked] == ["GET /api/models/org/sharded"]
    hub.clear()
    assert client.fetch(f"org/sharded@{COMMIT}")["folder"] == folder
    assert not hub.asked


def test_offline_after_a_download(hub: Hub, client: Client) -> None:
    folder = client.fetch("org/single")["folder"]
    hub.clear()
    assert client.fetch("org/single", offline=True)["folder"] == folder
    assert not hub.asked


def test_offline_before_any_download(hub: Hub, client: Client) -> None:
    message = client.error("org/single", offline=True)
    assert message.startswith("org/single: revision 'main' is not in the cache")
    assert "run once with the network" in message
    assert not hub.asked


def test_a_tokenizer_that_the_cache_lacks_is_fetched(hub: Hub, client: Client) -> None:
    """Other programs share the cache, and may have had no use for it."""
    folder = Path(client.fetch("org/single")["folder"])
    (folder / "tokenizer.json").unlink()
    assert client.fetch("org/single", offline=True)["folder"] == str(folder)
    client.fetch("org/single")
    assert (folder / "tokenizer.json").is_file()


def test_offline_with_a_part_of_it(hub: Hub, client: Client) -> None:
    folder = Path(client.fetch("org/sharded")["folder"])
    (folder / "model-00002-of-00002.safetensors").unlink()
    message = client.error("org/sharded", offline=True)
    assert re.match(r"org/sharded: offline, and commit a{12} is not wholly in the cache", message)


def test_a_cut_connection_goes_on_where_it_was(hub: Hub, client: Client) -> None:
    hub.cuts = [1_000_000, 500_000]
    folder = Path(client.fetch("org/single")["folder"])
    assert (folder / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    assert hub.sent == len(SINGLE["model.safetensors"])  # nothing twice
    ranges = [call[2] for call in hub.calls("GET /lfs/")]
    assert ranges == ["", "bytes=1000000-", "bytes=1500000-"]


def test_many_resets_with_progress_between_them(hub: Hub, client: Client) -> None:
    hub.cuts, hub.reset = [500_000] * 5, True
    folder = Path(client.fetch("org/single")["folder"])
    assert (folder / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]


def test_resets_without_progress_end(hub: Hub, client: Client) -> None:
    hub.always_cut, hub.reset = 0, True
    assert "the connection was lost while downloading model.safetensors" in client.error(
        "org/single"
    )


def test_a_lost_network_leaves_what_it_brought(hub: Hub, client: Client) -> None:
    size = len(SINGLE["model.safetensors"])
    hub.cuts, hub.always_cut = [2_000_000], 0
    message = client.error("org/single")
    assert "the connection was lost while downloading model.safetensors, with 2.0 MB" in message
    assert "run the same command again" in message
    assert not list(client.cache.glob("**/snapshots/*/model.safetensors"))
    hub.clear()
    folder = Path(client.fetch("org/single", report=True)["folder"])
    assert (folder / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]
    assert hub.sent == size - 2_000_000
    assert [call[2] for call in hub.calls("GET /lfs/")] == ["bytes=2000000-"]
    assert not list(client.cache.glob("**/*.incomplete"))


def test_an_expired_address_is_renewed(hub: Hub, client: Client) -> None:
    hub.expired = 1
    folder = Path(client.fetch("org/single")["folder"])
    assert (folder / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]


def test_damaged_data_is_refused(hub: Hub, client: Client) -> None:
    hub.wrong = b"nonsense"
    message = client.error("org/single")
    assert "model.safetensors arrived damaged" in message
    assert not list(client.cache.glob("**/*.incomplete"))
    hub.clear()
    assert "folder" in client.fetch("org/single")


def test_a_damaged_beginning_is_found_after_resuming(hub: Hub, client: Client) -> None:
    hub.cuts, hub.always_cut = [2_000_000], 0
    client.error("org/single")
    (partial,) = client.cache.glob("**/*.incomplete")
    with partial.open("r+b") as file:
        file.write(b"\0" * 100)
    hub.clear()
    assert "arrived damaged" in client.error("org/single")
    assert "folder" in client.fetch("org/single")


def test_a_partial_file_that_is_too_long_is_begun_anew(hub: Hub, client: Client) -> None:
    hub.cuts, hub.always_cut = [2_000_000], 0
    client.error("org/single")
    (partial,) = client.cache.glob("**/*.incomplete")
    partial.write_bytes(bytes(BIG + 1000))
    hub.clear()
    folder = Path(client.fetch("org/single")["folder"])
    assert (folder / "model.safetensors").read_bytes() == SINGLE["model.safetensors"]


def test_the_token_goes_to_the_hub_alone(hub: Hub, client: Client) -> None:
    client.fetch("org/gated", token="hf_good")
    of_hub = {call[3] for call in hub.asked if call[0] == "hub"}
    of_storage = {call[3] for call in hub.asked if call[0] == "storage"}
    assert of_hub == {"Bearer hf_good"}
    assert of_storage == {""}


def test_gated(hub: Hub, client: Client, servers: tuple[Hub, str]) -> None:
    message = client.error("org/gated")
    assert message.startswith(f"org/gated: is gated: accept its terms at {servers[1]}/org/gated")
    assert "HF_TOKEN" in message
    assert "your token has no access" in client.error("org/gated", token="hf_other")
    assert not hub.calls("/lfs/")


def test_token_from_the_environment(servers: tuple[Hub, str], hub: Hub, tmp_path: Path) -> None:
    process = start(servers[1], tmp_path, HF_TOKEN="hf_good")
    found = Client(process, tmp_path / "hub").fetch("org/gated", cache_dir=None)
    stop(process)
    assert Path(found["folder"]).is_relative_to(tmp_path / "hub")  # HF_HOME


def test_offline_from_the_environment(servers: tuple[Hub, str], hub: Hub, tmp_path: Path) -> None:
    process = start(servers[1], tmp_path, HF_HUB_OFFLINE="1")
    message = Client(process, tmp_path).error("org/single")
    stop(process)
    assert "is not in the cache" in message
    assert not hub.asked


def test_unreachable_hub(tmp_path: Path, hub: Hub, client: Client) -> None:
    folder = client.fetch("org/single")["folder"]
    process = start("http://127.0.0.1:9", tmp_path)  # nobody listens there
    lost = Client(process, client.cache)
    assert "the hub cannot be asked" in lost.error("org/sharded")
    assert lost.fetch("org/single")["folder"] == folder  # the cache remembers the branch
    stop(process)


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("org/absent", "no such repository at http://127"),
        ("org/single@nowhere", "has no revision 'nowhere'"),
        ("org/broken", "names the shard 'model-00002-of-00002.safetensors', which the repo"),
        ("org/pickle", r"Python pickles \(pytorch_model.bin\).*M.from_pretrained\('org/pickle'"),
        ("org/gguf", r"in llama.cpp's format \(model-Q4_K_M.gguf\)"),
        ("org/bare", "has no config.json"),
        ("no-slash", "no-slash: there is no such folder, and a repository of the hub is named"),
        ("./some/folder", "no such folder, and it has the form of a path"),
        ("/some/folder", "no such folder, and it has the form of a path"),
        ("some/other/folder", "no such folder, and it has the form of a path"),
        ("org/na me", "no such folder, and it is not of the form Org/Name"),
        ("org/a--b..c", "org/a--b..c: not a repository's name"),
    ],
)
def test_errors(hub: Hub, client: Client, checkpoint: str, expected: str) -> None:
    assert re.search(expected, client.error(checkpoint))
    assert not hub.calls("/lfs/")


def test_a_bad_token(hub: Hub, client: Client) -> None:
    assert "your token has no access to it" in client.error("org/absent", token="hf_bad")


def test_two_revisions(client: Client) -> None:
    assert "give one" in client.error("org/single@old", revision="main")


def test_disk_full(hub: Hub, client: Client, tmp_path: Path) -> None:
    """The tree says how large the weights are; more than the disk holds is refused at once."""
    hub.repos["org/huge"] = {COMMIT: SINGLE}
    tree = Handler.tree

    def huge(self: Handler, repo: str, revision: str) -> None:
        row = {"type": "file", "oid": "0" * 40, "size": 10**18, "path": "model.safetensors"}
        config = {"type": "file", "oid": "1" * 40, "size": len(CONFIG), "path": "config.json"}
        self.answer(200, json.dumps([row, config]).encode())

    Handler.tree = huge  # type: ignore[method-assign]
    try:
        message = client.error("org/huge")
    finally:
        Handler.tree = tree  # type: ignore[method-assign]
    assert re.search(r"1000000000\.00 GB are still to be downloaded, [\d.]+ GB are free", message)
    assert not hub.calls("/lfs/")
