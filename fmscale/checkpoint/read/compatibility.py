"""Differences between a checkpoint and the model at hand."""

import json
from collections.abc import Iterable, Sequence

from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.format.manifest import CheckpointManifest
from fmscale.errors import ConfigError

SHOWN = 5
"""Most tensors that a message names for each kind of difference; it counts the rest."""


def differences(manifest: CheckpointManifest, asked: Iterable[Tensor], *, convert: bool = False) -> str:
    """JSON that ranks exchange about the tensors that this rank asks for: tensors that the checkpoint lacks, tensors
    that it has with another type or shape, and the numbers of tensors that it has. With `convert` weights of another
    floating type do not differ.
    """
    missing: set[tuple[str, str]] = set()
    wrong: dict[tuple[str, str], str] = {}
    seen: set[int] = set()
    for tensor in asked:
        number = manifest.number.get((tensor.name, tensor.state))
        if number is None:
            missing.add((tensor.name, tensor.state))
            continue
        seen.add(number)
        stored = manifest.tensors[number]
        if stored != tensor and not (convert and _converts(stored, tensor)):
            types = (f"{stored.dtype} ", f"{tensor.dtype} ") if stored.dtype != tensor.dtype else ("", "")
            wrong[tensor.name, tensor.state] = (
                f"{types[0]}{list(stored.shape)} in the checkpoint, {types[1]}{list(tensor.shape)} in the model"
            )
    bits = sum(1 << number for number in seen)
    return json.dumps(
        {"missing": sorted(missing), "wrong": sorted((*key, how) for key, how in wrong.items()), "seen": f"{bits:x}"}
    )


def refuse_other_model(
    manifest: CheckpointManifest, answers: Sequence[str], where: str, *, partial: bool = False, weights: bool = False
) -> None:
    """Raise ConfigError, on every rank alike, unless the ranks ask for the checkpoint's tensors. With `partial` they
    may ask for a part of them, with `weights` for the weights alone. The error names a tensor's states only if its
    other states do not differ alike.
    """
    missing: set[tuple[str, str]] = set()
    wrong: set[tuple[str, str, str]] = set()
    bits = 0
    for answer in answers:
        part = json.loads(answer)
        missing.update((name, state) for name, state in part["missing"])
        wrong.update((name, state, how) for name, state, how in part["wrong"])
        bits |= int(part["seen"], 16)
    needed = [(i, t) for i, t in enumerate(manifest.tensors) if t.state == "weight" or not weights]
    there = _states((t.name, t.state) for _, t in needed)
    asked = _states((t.name, t.state) for i, t in needed if bits >> i & 1)
    unused = {(t.name, t.state) for i, t in needed if not bits >> i & 1}
    parts = []
    if missing:
        lacking = _states(missing)
        whole = {name: states for name, states in lacking.items() if name not in there}
        parts.append("only in the model: " + _some(_named(lacking, whole)))
    if unused and not partial:
        parts.append("only in the checkpoint: " + _some(_named(_states(unused), there)))
    if wrong:
        ways = sorted({how for _, _, how in wrong})
        named = [
            f"{name}: {way}"
            for way in ways
            for name in _named(_states((n, s) for n, s, how in wrong if how == way), asked)
        ]
        parts.append("different: " + _some(sorted(named)))
    if parts:
        raise ConfigError(
            f"{where} is of another model",
            found="; ".join(parts),
            remedy="Train the model that it was saved from, or begin another run.",
        )


def _converts(stored: Tensor, tensor: Tensor) -> bool:
    same = stored._replace(dtype=tensor.dtype) == tensor and tensor.state == "weight"
    return same and "float" in stored.dtype and "float" in tensor.dtype


def _states(tensors: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    states: dict[str, set[str]] = {}
    for name, state in tensors:
        states.setdefault(name, set()).add(state)
    return states


def _named(tensors: dict[str, set[str]], whole: dict[str, set[str]]) -> list[str]:
    """Names of the tensors, each with its states unless they are all its states in `whole`."""
    return [
        name if states == whole.get(name) else f"{name} ({', '.join(sorted(states))})"
        for name, states in sorted(tensors.items())
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
