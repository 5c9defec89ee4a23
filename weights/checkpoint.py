"""A checkpoint folder: one safetensors file, or shards under an index."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from paddock.graph import nearest
from paddock.weights.errors import WeightError
from paddock.weights.json_file import read_json
from paddock.weights.safetensors_file import SafetensorsFile, TensorInfo

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Weights in other forms: Python pickles, which run code when read, and other programs' formats.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FOREIGN = {".gguf": "llama.cpp", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX"}


class Checkpoint:
    """The tensors of a folder. Opening reads headers alone.

    `model.safetensors` is taken where there is one, as transformers does; else the shards that
    `model.safetensors.index.json` names. Raises `WeightError`.
    """

    def __init__(self, folder: Path, files: Iterable[SafetensorsFile]) -> None:
        self.folder = folder
        self.files = tuple(files)
        self.tensors: dict[str, TensorInfo] = {}
        for file in self.files:
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    other = self.tensors[name].file
                    assert other is not None
                    raise WeightError(
                        f"{folder}: {name!r} is in two shards, {other.path.name} and"
                        f" {file.path.name}; the files do not belong together"
                    )
                self.tensors[name] = tensor

    @staticmethod
    def open(folder: str | Path) -> Checkpoint:
        folder = Path(folder)
        if (folder / SINGLE).is_file():
            return Checkpoint(folder, [SafetensorsFile(folder / SINGLE)])
        if not (folder / INDEX).is_file():
            names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
            raise WeightError(_no_weights(str(folder), names))
        placed = read_index(folder / INDEX)
        shards = sorted(set(placed.values()))
        for shard in shards:
            if not (folder / shard).is_file():
                of = next(name for name, file in placed.items() if file == shard)
                raise WeightError(
                    f"{folder / INDEX}: names the shard {shard!r} (for {of!r}), which is not there;"
                    " download the checkpoint again"
                )
        files = {shard: SafetensorsFile(folder / shard) for shard in shards}
        for name, shard in placed.items():
            if name not in files[shard].tensors:
                elsewhere = next((s for s in shards if name in files[s].tensors), None)
                raise WeightError(
                    f"{folder / INDEX}: places {name!r} in {shard!r}, which does not hold it"
                    + (
                        f"; {elsewhere!r} does"
                        if elsewhere
                        else nearest(name, files[shard].tensors, count=1)
                    )
                )
        return Checkpoint(folder, files.values())

    @property
    def bytes_read(self) -> int:
        """Bytes of tensor data copied so far."""
        return sum(file.bytes_read for file in self.files)


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard file name. Raises `WeightError`."""
    index = read_json(path)
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise WeightError(f"{path}: has no weight_map from tensor names to shards")
    for name, shard in placed.items():
        if not isinstance(shard, str) or not shard.isprintable() or not _is_plain(shard):
            raise WeightError(
                f"{path}: places {name!r} in {shard!r}, which is not the name of a .safetensors"
                " file beside the index"
            )
    return placed


def refuse_without_safetensors(where: str, names: Iterable[str]) -> None:
    """Raise the `WeightError` that says what to do where no name is a safetensors checkpoint's."""
    names = list(names)
    if SINGLE not in names and INDEX not in names:
        raise WeightError(_no_weights(where, names))


def _is_plain(shard: str) -> bool:
    return shard.endswith(".safetensors") and not {"/", "\\", "\0"} & set(shard) and shard[0] != "."


def _no_weights(where: str, names: list[str]) -> str:
    pickles = sorted(n for n in names if n.endswith(PICKLES))
    if pickles:
        return (
            f"{where}: its weights are Python pickles ({_some(pickles)}), which run code when they"
            " are read; Paddock reads safetensors. Convert them where you trust their origin, with"
            ' torch and transformers installed: python -c "from transformers import'
            " AutoModelForCausalLM as M; M.from_pretrained("
            f"'{where}', dtype='auto').save_pretrained('converted')\", then use the folder"
            " 'converted' (copy the tokenizer's files into it)"
        )
    foreign = sorted(n for n in names if Path(n).suffix in FOREIGN)
    if foreign:
        maker = FOREIGN[Path(foreign[0]).suffix]
        return (
            f"{where}: its weights are in {maker}'s format ({_some(foreign)}); Paddock reads"
            " safetensors: use the repository that they were converted from"
        )
    others = sorted(n for n in names if n.endswith(".safetensors"))
    if others:
        return (
            f"{where}: expected {SINGLE} or {INDEX}, found {_some(others)}; weights under other"
            " names are adapters or another program's layout: use the model's Hugging Face form"
        )
    return f"{where}: holds no weights: neither {SINGLE} nor {INDEX}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
