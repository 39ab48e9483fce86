"""Exports a checkpoint to formats of other software, tensor by tensor: memory for a single tensor is enough."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from fmscale.checkpoint.checkpoint import Checkpoint
from fmscale.checkpoint.format.layout import FileRange, Tensor, shortest_header
from fmscale.checkpoint.format.names import REFERENCE
from fmscale.checkpoint.format.piece import DTYPES, elements
from fmscale.errors import ConfigError

SHARD_BYTES = 5_000_000_000
"""Most bytes in a file of a Hugging Face export, as in `save_pretrained`."""

Progress = Callable[[int], None]
Exported = tuple[Tensor, Tensor]
"""A tensor of the checkpoint, and the tensor with its name and type in the export, which has no states."""


def export_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    format: Literal["hf", "safetensors", "dcp"],
    names: Mapping[str, str | None] | None = None,
    files: Mapping[str, bytes] | None = None,
    types: Mapping[str, str] | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = lambda _: None,
) -> list[Path]:
    """Write the checkpoint into a new or empty folder; return the files.

    `hf`: weights under their names in `names` (None leaves one out), of their types in `types` (by our names, "*" for
    all others), in files of at most `shard_bytes`; model.safetensors.index.json if there are several files; and `files`
    by name.
    `safetensors`: every state of every tensor, named STATE/NAME, in one file. `dcp`: torch.distributed.checkpoint,
    model.NAME and optim.state.NAME.STATE. `dtype` converts floating tensors. Raises ConfigError for a folder in use, a
    `dtype` that is not floating or a tensor without a name in `names`, CorruptData for a damaged checkpoint.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("the folder for the export is not empty", found=str(folder), remedy="Name another.")
    if dtype is not None and (dtype not in DTYPES or not getattr(torch, dtype).is_floating_point):
        raise ConfigError("not a floating type", found=dtype, remedy="Use bfloat16, float16 or float32.")
    folder.mkdir(parents=True, exist_ok=True)
    if format == "dcp":
        from fmscale.checkpoint.export.dcp import export_dcp

        return export_dcp(checkpoint, folder, progress)
    if format == "safetensors":
        tensors = [
            (tensor, Tensor(f"{tensor.state}/{tensor.name}", "", _converted(tensor, dtype), tensor.shape))
            for tensor in checkpoint.manifest.tensors
        ]
        return [_write(checkpoint, folder / "checkpoint.safetensors", tensors, progress)]
    weights = [t for t in checkpoint.manifest.tensors if t.state == "weight" and not t.name.startswith(REFERENCE)]
    kept = {info.name: dtype or (types or {}).get(info.name, (types or {}).get("*")) for info in weights}
    tensors = [
        (info, Tensor(name, "", _converted(info, kept[info.name]), info.shape))
        for info in weights
        if (name := _mapped(info.name, names)) is not None
    ]
    written = _write_sharded(checkpoint, folder, tensors, shard_bytes, progress)
    for name, data in (files or {}).items():
        written.append(folder / name)
        written[-1].write_bytes(data)
    return written


def _write_sharded(
    checkpoint: Checkpoint, folder: Path, tensors: Sequence[Exported], shard_bytes: int, progress: Progress
) -> list[Path]:
    shards: list[list[Exported]] = [[]]
    for source, target in tensors:
        if shards[-1] and sum(other.nbytes for _, other in shards[-1]) + target.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append((source, target))
    if len(shards) == 1:
        return [_write(checkpoint, folder / "model.safetensors", shards[0], progress)]
    written, places = [], {}
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        written.append(_write(checkpoint, path, shard, progress))
        places.update({target.name: path.name for _, target in shard})
    index = {"metadata": {"total_size": sum(target.nbytes for _, target in tensors)}, "weight_map": places}
    return [*written, _write_json(folder / "model.safetensors.index.json", index)]


def _write(checkpoint: Checkpoint, path: Path, tensors: Sequence[Exported], progress: Progress) -> Path:
    """Write one safetensors file, which gets its name once it is complete. Wider types come first, as in `layout`."""
    ordered = sorted(tensors, key=lambda pair: -pair[1].item_bytes)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        whole = [FileRange(tensor=target, start=0, count=elements(target.shape)) for _, target in ordered]
        file.write(shortest_header(whole))
        for source, target in ordered:
            tensor = checkpoint.tensor(source.name, source.state)
            if target.dtype != source.dtype:
                tensor = tensor.to(getattr(torch, target.dtype))
            file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            progress(source.nbytes)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return path


def _converted(tensor: Tensor, dtype: str | None) -> str:
    floating = bool(getattr(torch, tensor.dtype).is_floating_point)
    return dtype if dtype is not None and floating else tensor.dtype


def _mapped(name: str, names: Mapping[str, str | None] | None) -> str | None:
    if names is None:
        return name
    if name not in names:
        raise ConfigError(
            "the export has no name for a tensor of the checkpoint",
            found=name,
            remedy="Is this checkpoint of the model whose names were given?",
        )
    return names[name]


def _write_json(path: Path, value: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(value, indent=2) + "\n")
    return path
