"""Get a checkpoint: a folder as it is, or a repository of the Hugging Face hub.

A folder `my/model` wins over a repository of the same name. Only safetensors and JSON are ever
fetched, and `config.json` before anything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddock.weights.checkpoint import PICKLES, refuse_without_safetensors
from paddock.weights.errors import WeightError
from paddock.weights.json_file import read_json
from paddock.weights.workers import Progress

CheckConfig = Callable[[Mapping[str, Any]], None]

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[^@\s]+))?", re.ASCII)


@dataclass(frozen=True)
class LocalCheckpoint:
    """A checkpoint on this machine; `repo` and `commit` say which revision it is of what."""

    folder: Path
    repo: str | None = None
    commit: str | None = None


def fetch(
    checkpoint: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    progress: Progress = True,
    cache_dir: str | Path | None = None,
    check: CheckConfig | None = None,
) -> LocalCheckpoint:
    """The checkpoint's folder, after downloading what is missing of it.

    `checkpoint` is a folder, or `Org/Name` or `Org/Name@revision` on the hub. A branch or tag is
    pinned to its commit first, so that all files are of one commit. What `token`, `offline` and
    `cache_dir` leave open is as in huggingface_hub: HF_TOKEN or the saved login, HF_HUB_OFFLINE,
    HF_ENDPOINT, HF_HOME. `check` is called with the parsed config.json before any weight is
    fetched; what it raises goes through. `progress` gets bytes.

    An interrupted download goes on where it was when it is asked for again. Raises
    `WeightError`.
    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise WeightError(f"{checkpoint}: a folder has no revision {revision!r}; leave it out")
        names = [path.name for path in folder.iterdir()]
        if "config.json" not in names:
            raise WeightError(f"{folder}: no config.json; is this the folder of a checkpoint?")
        _check(folder / "config.json", check)
        refuse_without_safetensors(str(folder), names)
        return LocalCheckpoint(folder)
    repo, revision = _parse(checkpoint, folder, revision)
    # Imported here: opening a folder does without huggingface_hub, which takes a while to import.
    from paddock.weights.download import download

    folder, commit = download(
        repo,
        revision,
        token=token,
        offline=offline,
        progress=progress,
        cache_dir=cache_dir,
        check=lambda config: _check(config, check),
    )
    return LocalCheckpoint(folder, repo, commit)


def _parse(checkpoint: str, folder: Path, revision: str | None) -> tuple[str, str | None]:
    """Repository and revision. Raises `WeightError` for what can only be a folder."""
    if folder.is_file():
        if folder.suffix in (*PICKLES, ".gguf"):
            refuse_without_safetensors(checkpoint, [folder.name])
        raise WeightError(f"{checkpoint}: is a file; give the folder that holds config.json")
    found = _REPOSITORY.fullmatch(checkpoint)
    if found is None or checkpoint.startswith((".", "~")):
        if "/" not in checkpoint:
            hint = "and a repository of the hub is named Org/Name, e.g. Qwen/Qwen3-0.6B"
        elif checkpoint.startswith(("/", ".", "~")) or checkpoint.count("/") != 1:
            hint = "and it has the form of a path, not of a repository Org/Name"
        else:
            hint = "and it is not of the form Org/Name or Org/Name@revision"
        raise WeightError(f"{checkpoint}: there is no such folder, {hint}")
    named = found["revision"]
    if named is not None and revision is not None and named != revision:
        raise WeightError(
            f"{checkpoint}: names the revision {named!r}, and {revision!r} is asked for too;"
            " give one"
        )
    return found["repo"], revision if named is None else named


def _check(path: Path, check: CheckConfig | None) -> None:
    """Read a config.json and let the caller look at it."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise WeightError(f"{path}: expected a JSON object, found {type(config).__name__}")
    if check is not None:
        check(config)
