"""Download a hub repository into huggingface_hub's own cache, and resume what was cut off.

The hub's client does the talking and lays out the cache, which other programs share. It does not
keep the part of a file that it has when a download fails, so files are fetched here, with its
`http_get`, into `blobs/<etag>.incomplete`, where the next attempt finds them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_token

from paddock.weights.checkpoint import INDEX, SINGLE, read_index, refuse_without_safetensors
from paddock.weights.errors import WeightError
from paddock.weights.workers import Progress, Work, run

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
# What a model needs beside its config and weights, where it has them. No pickles, no code.
BESIDE = (
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",  # how images are fed
    "processor_config.json",
    "modules.json",  # of sentence-transformers, with folders of its modules
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
MODULES = "modules.json"
CONNECTIONS = 8  # files at a time, as huggingface_hub's own default
ATTEMPTS = 3  # without a byte of progress, beside those that `http_get` makes itself


def download(
    repo: str,
    revision: str | None,
    *,
    token: str | None,
    offline: bool | None,
    progress: Progress,
    cache_dir: str | Path | None,
    check: Callable[[Path], None],
) -> tuple[Path, str]:
    """The folder in the cache and the commit. `check` gets config.json before any weight."""
    snapshot = _Snapshot(repo, revision, token, cache_dir)
    with snapshot.errors():
        offline = constants.is_offline_mode() if offline is None else offline
        snapshot.resolve(offline)
        folder = snapshot.folder
        if _is_complete(folder, need_tokenizer=not offline):
            check(folder / CONFIG)
            return folder, snapshot.commit
        if offline:
            raise WeightError(
                f"{repo}: offline, and commit {snapshot.commit[:12]} is not wholly in the cache"
                f" ({snapshot.storage}); run once with the network"
            )
        files = snapshot.list_files()
        refuse_without_safetensors(repo, files)
        if CONFIG not in files:
            raise WeightError(f"{repo}: has no {CONFIG}; is it the repository of a model?")
        snapshot.get([CONFIG], files, progress=False)
        check(folder / CONFIG)
        weights = snapshot.weight_files(files)
        beside = [name for name in BESIDE if name in files]
        snapshot.get(beside, files, progress=False)
        modules = snapshot.module_files() if MODULES in beside else {}
        snapshot.get([*modules], modules, progress=False)
        snapshot.check_room(weights, files)
        snapshot.get(weights, files, progress=progress)
    return folder, snapshot.commit


class _Snapshot:
    """One commit of a repository in the cache."""

    def __init__(
        self, repo: str, revision: str | None, token: str | None, cache_dir: str | Path | None
    ) -> None:
        self.repo, self.revision, self.token = repo, revision, token
        self.cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
        self.commit = ""
        self.api = HfApi(token=token, library_name="paddock")

    @property
    def storage(self) -> Path:
        """The repository's folder in the cache."""
        return self.cache / str(repo_folder_name(repo_id=self.repo, repo_type="model"))

    @property
    def folder(self) -> Path:
        return self.storage / "snapshots" / self.commit

    def resolve(self, offline: bool) -> None:
        """Pin the revision to its commit: by the hub, or else as the cache remembers it."""
        self.commit = self.api.resolve_revision(
            self.repo, revision=self.revision, cache_dir=self.cache, local_files_only=offline
        ).resolved
        if not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise WeightError(f"{self.repo}: the hub names no commit but {self.commit[:80]!r}")

    def list_files(self) -> dict[str, int]:
        """Name -> bytes of the files at the top of the repository."""
        entries = self.api.list_repo_tree(self.repo, revision=self.commit)
        return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}

    def module_files(self) -> dict[str, int]:
        """Name -> bytes of what sentence-transformers' modules have in folders of their own."""
        try:
            listed = json.loads((self.folder / MODULES).read_bytes())
            folders = {str(module["path"]) for module in listed} - {""}
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise WeightError(f"{self.repo}: {MODULES} lists no modules: {error}") from error
        # Modules without settings have no folder, for which the hub would have no answer.
        entries = self.api.list_repo_tree(self.repo, revision=self.commit, recursive=True)
        return {
            entry.path: entry.size
            for entry in entries
            if isinstance(entry, RepoFile)
            and entry.path.rpartition("/")[0] in folders
            and entry.path.rpartition("/")[2] in (CONFIG, SINGLE)
        }

    def weight_files(self, files: dict[str, int]) -> list[str]:
        """The index, which is fetched now, and the shards that it names; or the single file."""
        if SINGLE in files:
            return [SINGLE]
        self.get([INDEX], files, progress=False)
        shards = sorted(set(read_index(self.folder / INDEX).values()))
        absent = [shard for shard in shards if shard not in files]
        if absent:
            raise WeightError(
                f"{self.repo}: {INDEX} names the shard {absent[0]!r}, which the repository does"
                " not have"
            )
        return shards

    def check_room(self, names: list[str], files: dict[str, int]) -> None:
        """Raise where what is still missing does not fit on the disk."""
        missing = sum(files[name] for name in names if not (self.folder / name).is_file())
        partial = [p for p in (self.storage / "blobs").glob("*.incomplete") if "." not in p.stem]
        missing -= sum(path.stat().st_size for path in partial)
        free = shutil.disk_usage(self.storage).free
        if missing > free:
            raise WeightError(
                f"{self.repo}: {missing / 1e9:.2f} GB are still to be downloaded,"
                f" {free / 1e9:.2f} GB are free at {self.cache}; make room there, or set HF_HOME"
                " to a folder on another disk"
            )

    def get(self, names: list[str], files: dict[str, int], *, progress: Progress) -> None:
        """Fetch the files that the cache lacks."""
        wanted = [name for name in names if not (self.folder / name).is_file()]

        def task(name: str) -> Callable[[Work], None]:
            return lambda work: self._get_file(name, work)

        run(
            [task(name) for name in wanted],
            total=sum(files[name] for name in names),
            done=sum(files[name] for name in names if name not in wanted),
            threads=CONNECTIONS,
            label=f"download {self.repo}",
            progress=progress,
        )

    def _get_file(self, name: str, work: Work) -> None:
        """Fetch one file's blob, going on after lost connections, and link it into the folder."""
        attempts, bar = 0, _FileBar(work)
        while True:
            partial: Path | None = None
            before = 0
            try:
                url = hf_hub_url(self.repo, name, revision=self.commit)
                metadata = get_hf_file_metadata(url, token=self.token)
                etag = _file_name(self.repo, name, metadata.etag)
                blob = self.storage / "blobs" / etag
                partial = blob.with_name(f"{etag}.incomplete")
                blob.parent.mkdir(parents=True, exist_ok=True)
                lock = self.cache / ".locks" / self.storage.name / f"{etag}.lock"
                lock.parent.mkdir(parents=True, exist_ok=True)
                with WeakFileLock(lock):
                    before = partial.stat().st_size if partial.exists() else 0
                    if not blob.exists():
                        self._get_blob(name, metadata, partial, bar)
                        partial.replace(blob)
                hf_hub_download(
                    self.repo, name, revision=self.commit, cache_dir=self.cache, token=self.token
                )
                return
            except (HTTPError, OSError) as error:
                if not _is_passing(error):
                    raise
                after = partial.stat().st_size if partial and partial.exists() else 0
                attempts = 0 if after > before else attempts + 1
                if attempts >= ATTEMPTS:
                    raise WeightError(
                        f"{self.repo}: the connection was lost while downloading {name}, with"
                        f" {after / 1e6:.1f} MB of it here ({_reason(error)}); run the same command"
                        " again: it goes on from there"
                    ) from error
                time.sleep(2**attempts)

    def _get_blob(self, name: str, metadata: Any, partial: Path, bar: _FileBar) -> None:
        """Append to the partial file what is missing of it, and check the whole."""
        headers = build_hf_headers(token=self.token, library_name="paddock")
        headers["Accept-Encoding"] = "identity"  # ranges count the bytes of the file itself
        if _origin(metadata.location) != _origin(constants.ENDPOINT):
            headers.pop("authorization", None)  # a storage host gets a signed address instead
        with partial.open("ab") as file:
            here = file.tell()
            if metadata.size is not None and here > metadata.size:
                file.truncate(0)
                here = 0
            bar.begin(here)
            try:
                http_get(
                    metadata.location,
                    file,
                    resume_size=here,
                    headers=headers,
                    expected_size=metadata.size,
                    displayed_filename=name,
                    tqdm_class=lambda **_: bar,
                )
            except (OSError, ValueError) as error:
                if isinstance(error, HTTPError) or getattr(error, "errno", None):
                    raise
                # What is left are its checks of the size, at the end and of the 50 GB it can do.
                partial.unlink()
                raise WeightError(f"{self.repo}: {name}: {_reason(error)}") from error
        if re.fullmatch(r"[0-9a-f]{64}", partial.stem):  # large files are named by their sha256
            with partial.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != partial.stem:
                partial.unlink()
                raise WeightError(
                    f"{self.repo}: {name} arrived damaged (its sha256 is {found[:12]}..., expected"
                    f" {partial.stem[:12]}...); run the same command again to fetch it anew"
                )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what huggingface_hub raises into one `WeightError` with the next step."""
        try:
            yield
        except WeightError:
            raise
        except (HTTPError, OSError, ValueError, RevisionResolutionError) as error:
            raise WeightError(f"{self.repo}: {self._explained(error)}") from error

    def _explained(self, error: Exception) -> str:
        has_token = bool(self.token or get_token())
        match error:
            case GatedRepoError():
                page = f"{constants.ENDPOINT}/{self.repo}"
                if has_token:
                    return f"is gated, and your token has no access: ask for it at {page}"
                return (
                    f"is gated: accept its terms at {page}, then set HF_TOKEN to a token of yours"
                    " or run `hf auth login`"
                )
            case RevisionNotFoundError():
                return f"has no revision {self.revision!r}; leave it out for the main branch"
            case RepositoryNotFoundError():
                return (
                    f"no such repository at {constants.ENDPOINT}, nor a folder of that name; if it"
                    " is private, "
                    + (
                        "your token has no access to it"
                        if has_token
                        else "set HF_TOKEN to a token that may read it"
                    )
                )
            case OfflineModeIsEnabled() | LocalEntryNotFoundError() | RevisionResolutionError():
                revision = self.revision or "main"
                return (
                    f"revision {revision!r} is not in the cache ({self.storage}), and the hub"
                    f" cannot be asked ({_reason(error)}); run once with the network, and without"
                    " HF_HUB_OFFLINE"
                )
            case HfHubHTTPError() if error.response.status_code == 401:
                return "the hub refuses your token; set HF_TOKEN to a valid one"
            case HfHubHTTPError():
                return f"the hub answered {error.response.status_code}: {_reason(error)}"
            case HTTPError():
                return f"{constants.ENDPOINT} cannot be reached ({_reason(error)}); try again"
            case HFValidationError():
                return f"not a repository's name: {_reason(error)}"
            case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return (
                    f"the disk is full at {self.cache}; make room, or set HF_HOME to a folder on"
                    " another disk, and run again: what is here is kept"
                )
            case _:
                return _reason(error)


def _is_complete(folder: Path, *, need_tokenizer: bool) -> bool:
    """Whether config and weights are there, and the tokenizer, which not every model has."""
    if not (folder / CONFIG).is_file() or (need_tokenizer and not (folder / TOKENIZER).is_file()):
        return False
    if (folder / SINGLE).is_file():
        return True
    if not (folder / INDEX).is_file():
        return False
    return all((folder / shard).is_file() for shard in read_index(folder / INDEX).values())


def _is_passing(error: Exception) -> bool:
    """Whether another attempt may help: the network failed, or the server did for the moment."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):  # of a storage host: its signed address expired, a new one helps
            return _origin(str(error.response.request.url)) != _origin(constants.ENDPOINT)
        return status >= 500 or status in (408, 416, 429)
    return isinstance(error, HTTPError | LocalEntryNotFoundError)


def _file_name(repo: str, name: str, etag: str | None) -> str:
    """The etag, by which the cache names a blob, if it can name a file."""
    if etag is None or not re.fullmatch(r"[\w-][\w.-]{0,127}", etag, re.ASCII):
        raise WeightError(
            f"{repo}: the server gives {name} the etag {etag!r}, which names no version; is"
            f" {constants.ENDPOINT} a Hugging Face hub?"
        )
    return etag


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


class _FileBar:
    """The tqdm that `http_get` moves: one file's share of the whole download."""

    def __init__(self, work: Work) -> None:
        self._work, self._done = work, 0

    def begin(self, here: int) -> None:
        """So much of the file is here, whatever an earlier attempt had."""
        self.update(here - self._done)

    def update(self, count: int) -> None:
        self._done += count
        self._work.advance(count)

    def __enter__(self) -> _FileBar:
        return self

    def __exit__(self, *_: object) -> None:
        """Further attempts use the same bar."""


def _reason(error: BaseException) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
