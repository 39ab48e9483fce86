"""Whether a checkpoint is of the model at hand, and if not, how the two differ."""

import json
from collections.abc import Iterable, Sequence

from fmscale.checkpoint.layout import Range
from fmscale.checkpoint.manifest import Manifest
from fmscale.errors import ConfigError

SHOWN = 5
"""Tensors named of each kind of difference; the rest is counted."""


def differences(manifest: Manifest, asked: Iterable[Range]) -> str:
    """What this rank and others exchange: which tensors it asks for that the checkpoint has not or has in
    another shape, and which of the checkpoint's it asks for. JSON.
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
        if (there.dtype, there.shape) != (one.dtype, tuple(one.shape)):
            wrong[one.name, one.state] = (
                f"{_shape(there.dtype, there.shape)} in the checkpoint, {_shape(one.dtype, one.shape)} in the model"
            )
    bits = sum(1 << number for number in seen)
    return json.dumps(
        {
            "missing": sorted(missing),
            "wrong": sorted((*key, how) for key, how in wrong.items()),
            "seen": f"{bits:x}",
        }
    )


def refuse_other_model(manifest: Manifest, answers: Sequence[str], where: str, *, partial: bool) -> None:
    """Raise ConfigError, on every rank alike, unless the ranks ask for what the checkpoint has. With `partial`
    they need not ask for all of it.
    """
    missing: set[tuple[str, str]] = set()
    wrong: set[tuple[str, str, str]] = set()
    bits = 0
    for answer in answers:
        found = json.loads(answer)
        missing.update((name, state) for name, state in found["missing"])
        wrong.update((name, state, how) for name, state, how in found["wrong"])
        bits |= int(found["seen"], 16)
    unused = [] if partial else [t for i, t in enumerate(manifest.tensors) if not bits >> i & 1]
    parts = []
    if missing:
        parts.append("only in the model: " + _some([f"{n} ({s})" for n, s in sorted(missing)]))
    if unused:
        parts.append("only in the checkpoint: " + _some([f"{t.name} ({t.state})" for t in unused]))
    if wrong:
        parts.append("different: " + _some([f"{n} ({s}): {how}" for n, s, how in sorted(wrong)]))
    if parts:
        raise ConfigError(
            f"{where} is of another model",
            found="; ".join(parts),
            remedy="Train the model that it was saved from, or begin another run.",
        )


def _shape(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} [{', '.join(map(str, shape))}]"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
