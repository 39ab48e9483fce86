"""Adapter runs for other software and for other runs: PEFT's files both ways, and weights with the adapter merged."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fmscale.checkpoint.base import BASE, name_base, open_base, pin_for
from fmscale.checkpoint.catalog import CheckpointEntry
from fmscale.checkpoint.checkpoint import Checkpoint, open_checkpoint
from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.read.meta import decoder_section, section
from fmscale.checkpoint.weights import save_weights
from fmscale.config import LoraConfig, ModelConfig, as_tree
from fmscale.errors import ConfigError
from fmscale.models import build
from fmscale.models.lora import linears, merged, row_lengths, wrap
from fmscale.models.peft import from_peft_config, peft_config, peft_names
from fmscale.store.backends.protocol import Backend

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's files."""
OF_TRAINING = ("loader", "world_size", "tokens", "first_step_tokens", "init", "types", BASE)
"""Facts of a checkpoint that are wrong for weights made of it: those of its training, and the types of its tensors."""
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A checkpoint of an adapter run, its base, and the layers that it adapts."""

    checkpoint: Checkpoint
    base: Checkpoint
    config: LoraConfig
    model: ModelConfig
    targets: list[str]

    def part(self, target: str, name: str) -> torch.Tensor | None:
        """A parameter of the adapter of a layer, fp32; None for `magnitude` where it has none."""
        known = name != "magnitude" or self.config.kind == "dora"
        return self.checkpoint.tensor(f"{target}.{name}").float() if known else None

    def magnitude(self, target: str) -> torch.Tensor:
        """Lengths of the rows that DoRA trains, as PEFT keeps them: here only their change is kept."""
        return row_lengths(self.base.tensor(f"{target}.weight")) + cast(torch.Tensor, self.part(target, "magnitude"))

    def merged(self, target: str) -> torch.Tensor:
        """The layer's weight with its adapter, fp32."""
        a, b, magnitude = (self.part(target, name) for name in ("lora_a", "lora_b", "magnitude"))
        weight = self.base.tensor(f"{target}.weight")
        return merged(weight, cast(torch.Tensor, a), cast(torch.Tensor, b), magnitude, self.config.scale)


def open_adapter(address: str) -> Adapter:
    """The adapter at STORE_URL#RUN[@STEP]. Raises ConfigError for a run without an adapter or without its base,
    StoreError, CorruptData.
    """
    checkpoint = open_checkpoint(address)
    if BASE not in checkpoint.meta:
        remedy = "Name a run that was trained with the section adapter."
        raise ConfigError("The run has no adapter", found=f"{checkpoint.run}@{checkpoint.step}", remedy=remedy)
    base = open_base(checkpoint.backend, checkpoint.meta)
    config = section(checkpoint.meta, "adapter", LoraConfig)
    model = decoder_section(checkpoint.meta, "PEFT's format and a merge")
    targets = list(dict.fromkeys(name.rpartition(".")[0] for name in checkpoint.names))
    return Adapter(checkpoint=checkpoint, base=base, config=config, model=model, targets=targets)


def merge(
    adapter: Adapter, run: str, dtype: str, backend: Backend, progress: Progress = lambda _: None
) -> dict[str, float]:
    """Make the run `run` of whole weights in the store `backend`: base and adapter, added in fp32, in the type `dtype`
    (a name of torch's). Returns, by layer, the part of the change that the type has lost: the length of the lost change
    by that of the change. Raises ConfigError for a run that exists, StoreError, CorruptData.
    """
    kind = getattr(torch, dtype)
    lost: dict[str, float] = {}

    def read(name: str) -> torch.Tensor:
        target, base = name.removesuffix(".weight"), adapter.base.tensor(name)
        progress(base.nbytes)
        if target not in adapter.targets:
            return base.to(kind)
        whole = adapter.merged(target)
        change = whole - base.float()
        arrived = whole.to(kind).float() - base.to(kind).float()
        length = float(change.norm())
        lost[target] = float((arrived - change).norm()) / length if length else 0.0
        return whole.to(kind)

    weights = [tensor for tensor in adapter.base.manifest.tensors if tensor.state == "weight"]
    tensors = [tensor._replace(dtype=dtype) for tensor in weights]
    save_weights(backend, run, tensors, read, _facts(adapter.checkpoint))
    return lost


def export_peft(adapter: Adapter, folder: Path, base: str) -> list[Path]:
    """Write the adapter as PEFT's files into a new or empty folder; return them. `base` is the name that PEFT finds its
    base by. Raises ConfigError for a folder in use, StoreError, CorruptData.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("the folder for the export is not empty", found=str(folder), remedy="Name another.")
    names = peft_names(adapter.model, adapter.targets, adapter.config.kind)
    config = peft_config(adapter.config, adapter.model, adapter.targets, base)
    tensors = {}
    for name, theirs in names.items():
        target, _, part = name.rpartition(".")
        tensors[theirs] = adapter.magnitude(target) if part == "magnitude" else adapter.checkpoint.tensor(name)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return [folder / CONFIG, folder / WEIGHTS]


def import_peft(folder: Path, backend: Backend, run: str, base: Checkpoint) -> CheckpointEntry:
    """Make the adapter run `run` in the store `backend` of PEFT's files, on a base, which is pinned.

    Raises ConfigError for files that are no such adapter, for an adapter of another base, or for a run that exists;
    StoreError, CorruptData.
    """
    if BASE in base.meta:
        remedy = f"Merge it first (`fmscale adapter merge`), or take its base: {base.meta[BASE]['address']}."
        raise ConfigError("The base is an adapter run itself", found=f"{base.run}@{base.step}", remedy=remedy)
    written, theirs = _read(folder)
    model = decoder_section(base.meta, "an adapter")
    with torch.device("meta"):
        built = build(model, vocab_size=base.meta["vocab_size"])
    layers = linears(built)
    ours = {theirs: name for name, theirs in peft_names(model, layers, "dora").items()}
    ours |= {f"{their}.weight": name for their, name in ours.items() if name.endswith("magnitude")}
    if strange := sorted(theirs.keys() - ours.keys()):
        raise _other_base(
            base, f"{', '.join(strange[:3])} and {len(strange)} in all that no linear layer of a block has"
        )
    tensors = {ours[name]: tensor.float() for name, tensor in theirs.items()}
    targets = [name for name in layers if f"{name}.lora_a" in tensors]
    config = from_peft_config(written, targets, layers)
    wrap(built, config)
    wanted = {name: tuple(p.shape) for name, p in built.named_parameters() if p.requires_grad}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differ = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differ:
        name = differ[0]
        raise _other_base(base, f"{name} {found.get(name, 'missing')}, the base needs {wanted.get(name, 'none')}")
    for target in targets if config.kind == "dora" else ():
        tensors[f"{target}.magnitude"] -= row_lengths(base.tensor(f"{target}.weight"))
    meta = _facts(base)
    meta["config"] = {**meta["config"], "adapter": as_tree(config)}
    meta[BASE] = name_base(base, backend)
    pin_for(run, backend, base)
    infos = [Tensor(name, "weight", "float32", shape) for name, shape in found.items()]
    return save_weights(backend, run, infos, tensors.__getitem__, meta)


def _read(folder: Path) -> tuple[Mapping[str, Any], dict[str, torch.Tensor]]:
    """Config and tensors of PEFT's files."""
    path = folder / WEIGHTS
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} is no mapping")
        with safe_open(path, framework="pt") as opened:
            return config, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        remedy = f"The folder must have {CONFIG} and {WEIGHTS} (no pickled .bin)."
        raise ConfigError("Not an adapter in PEFT's format", found=f"{folder}: {error}", remedy=remedy) from error


def _other_base(base: Checkpoint, found: str) -> ConfigError:
    where = f"{base.run}@{base.step}"
    return ConfigError(f"The adapter is for another base than {where}", found=found, remedy="Name its own base.")


def _facts(source: Checkpoint) -> dict[str, Any]:
    """Meta of a run of weights alone, made of a checkpoint: at step 0, with the sections `model` and `data`."""
    config = {name: source.meta["config"][name] for name in ("model", "data") if name in source.meta["config"]}
    kept = {name: value for name, value in source.meta.items() if name not in OF_TRAINING}
    return {**kept, "step": 0, "updates": 0, "config": config}
