"""Differences between a checkpoint and the model at hand."""

import json
from collections.abc import Iterable, Sequence

from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.format.manifest import CheckpointManifest
from fmscale.errors import ConfigError

SHOWN = 5
"""Tensors named of each kind of difference; the rest is counted."""


def differences(manifest: CheckpointManifest, asked: Iterable[Tensor]) -> str:
    """JSON that ranks exchange: the tensors that this rank asks for and the checkpoint lacks or has in another
    shape, and those of the checkpoint that it asks for.
    """
    missing: set[tuple[str, str]] = set()
    wrong: dict[tuple[str, str], str] = {}
    seen: set[int] = set()
    for one in asked:
        number = manifest.number.get((one.name, one.state))
        if number is None:
            missing.add((one.name, one.state))
            continue
        seen.add(number)
        there = manifest.tensors[number]
        if there != one:
            types = (f"{there.dtype} ", f"{one.dtype} ") if there.dtype != one.dtype else ("", "")
            wrong[one.name, one.state] = (
                f"{types[0]}{list(there.shape)} in the checkpoint, {types[1]}{list(one.shape)} in the model"
            )
    bits = sum(1 << number for number in seen)
    return json.dumps(
        {"missing": sorted(missing), "wrong": sorted((*key, how) for key, how in wrong.items()), "seen": f"{bits:x}"}
    )


def refuse_other_model(manifest: CheckpointManifest, answers: Sequence[str], where: str, *, partial: bool) -> None:
    """Raise ConfigError, on every rank alike, unless the ranks ask for what the checkpoint has. With `partial`
    they need not ask for all of it. States are named only where the tensor's others do not differ in the same way.
    """
    missing: set[tuple[str, str]] = set()
    wrong: set[tuple[str, str, str]] = set()
    bits = 0
    for answer in answers:
        found = json.loads(answer)
        missing.update((name, state) for name, state in found["missing"])
        wrong.update((name, state, how) for name, state, how in found["wrong"])
        bits |= int(found["seen"], 16)
    there = _states((t.name, t.state) for t in manifest.tensors)
    asked = _states((t.name, t.state) for i, t in enumerate(manifest.tensors) if bits >> i & 1)
    unused = {(t.name, t.state) for i, t in enumerate(manifest.tensors) if not bits >> i & 1}
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


def _states(tensors: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, state in tensors:
        found.setdefault(name, set()).add(state)
    return found


def _named(tensors: dict[str, set[str]], whole: dict[str, set[str]]) -> list[str]:
    """Names, each with its states unless these are all that `whole` has of it."""
    return [
        name if states == whole.get(name) else f"{name} ({', '.join(sorted(states))})"
        for name, states in sorted(tensors.items())
    ]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
