"""The backend that serves a call, and its launch configuration.

`backend="auto"` takes the fastest backend for (device, Triton version, op, shape bucket) by a table of measurements in
`kernels/tuned/`, which `fmscale bench kernels --tune` writes and the package ships. Without a measured entry
the default is triton on CUDA and eager elsewhere; the log says so once. No job measures or tunes while it runs.

A bucket consists of the dtype and of the sizes that a model fixes (hidden size, vocabulary, head dim), never of the
token count. The token count changes from batch to batch: a choice by token count would recompile under `torch.compile`
and make a step's arithmetic depend on the packing of its rows.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from fmscale.kernels.launch import TRITON_VERSION, round_up
from torch import Tensor

from fmscale.errors import KernelError

FORMAT_VERSION = 1
TUNED = Path(__file__).parent / "tuned"
log = logging.getLogger("fmscale.kernels")

Config = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class TunedEntry:
    """One measured case of a table."""

    op: str
    bucket: str
    """Dtype and model sizes, as `bucket` spells them."""
    backend: str
    """The fastest backend whose numbers were right."""
    configs: Mapping[str, Config] = field(default_factory=dict)
    """Launch configuration per kernel of the op, for the triton backend."""
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    """Median time per backend, in the tuning run."""


@dataclass(frozen=True, kw_only=True)
class TunedTable:
    """Measurements on one kind of device with one Triton version."""

    gpu: str
    """Name of the device as torch reports it."""
    triton: str
    """Triton version of the measurements."""
    entries: tuple[TunedEntry, ...] = ()
    rejected: tuple[Mapping[str, Any], ...] = ()
    """Configurations whose numbers were wrong or that crashed, with the reason and the ptxas version."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """torch, triton, ptxas and driver of the run."""


def read_table(path: Path) -> TunedTable:
    """Parse one table file. Raises KernelError for a format that this version does not know."""
    raw = json.loads(path.read_text())
    if raw.get("format_version") != FORMAT_VERSION:
        raise KernelError(
            f"{path.name} is not a tuning table of this version",
            found=raw.get("format_version"),
            remedy="Measure again with `fmscale bench kernels --tune`, from a checkout.",
        )
    return TunedTable(
        gpu=raw["gpu"],
        triton=raw["triton"],
        entries=tuple(TunedEntry(**entry) for entry in raw["entries"]),
        rejected=tuple(raw["rejected"]),
        versions=raw["versions"],
    )


_tables: dict[tuple[str, str], TunedTable] = {}
_entries: dict[tuple[str, str, str], TunedEntry] = {}
_forced: dict[tuple[str, str], Config] = {}
_settled: set[tuple[str, torch.dtype, int]] = set()
_announced: dict[tuple[str, str, str], str] = {}
_ignored: set[tuple[str, str, str, str]] = set()


def use_table(table: TunedTable) -> None:
    """Let `auto` follow `table` from now on, in place of an earlier table for the same device and Triton."""
    _settled.clear()
    _tables[table.gpu, table.triton] = table
    if table.triton == TRITON_VERSION:
        for key in [key for key in _entries if key[0] == table.gpu]:
            del _entries[key]
        _entries.update({(table.gpu, entry.op, entry.bucket): entry for entry in table.entries})


def tables() -> list[TunedTable]:
    """Every table known to this process, also for other devices and Triton versions."""
    return list(_tables.values())


for _path in sorted(TUNED.glob("*.json")):
    use_table(read_table(_path))


def settled(op: str, backend: str, x: Tensor) -> bool:
    """True if `auto` has chosen eager for an op without a table on a CPU, at the dtype and last size of x: a step of a
    small model makes some hundred such calls, and a choice takes as long as the shortest of them.
    """
    if backend != "auto" or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    key = (op, x.dtype, x.shape[-1])
    if key in _settled:
        return True
    if not any(name == "cpu" for name, *_ in (*_tables, *_entries)):
        _settled.add(key)
    return False


def bucket(dtype: torch.dtype, **sizes: int) -> str:
    """A bucket's name: `bucket(torch.bfloat16, D=4000)` is "bfloat16 D4096"."""
    return " ".join([str(dtype).removeprefix("torch."), *(f"{n}{round_up(s)}" for n, s in sizes.items())])


def device_name(device: torch.device) -> str:
    """The key of a device in the tables: the GPU's name, or "cpu"."""
    if device.type != "cuda":
        return device.type
    # torch.compile folds this query for the name into a constant
    return str(torch.cuda.get_device_properties(device).name)


def choose(op: str, backend: str, device: torch.device, case: str, refusals: Mapping[str, str | None]) -> str:
    """The backend that serves a call of `op` in the bucket `case` on `device`.

    `refusals` maps each backend of the op to the reason why it cannot serve this call, or to None. Raises KernelError
    for a `backend` that the op lacks or that refuses, and names a backend that can serve the call.
    """
    able = [name for name, reason in refusals.items() if reason is None]
    if backend == "auto":
        name = device_name(device)
        entry = _entries.get((name, op, case))
        default = "triton" if device.type == "cuda" else "eager"
        choice = entry.backend if entry is not None and entry.backend in able else default
        if choice not in able:
            choice = able[0]
        _announce(name, op, case, choice, _reason(choice, entry, refusals))
        return choice
    if backend not in refusals:
        raise KernelError(
            f"{op} has no backend of that name", found=backend, remedy=f"Use auto or one of {list(refusals)}."
        )
    if refusals[backend] is not None:
        raise KernelError(
            f'backend "{backend}" of {op} cannot serve this call',
            found=refusals[backend],
            remedy=f"Use backend={able[0]!r}." if able else "No other backend can serve it either.",
        )
    return backend


def _reason(choice: str, entry: TunedEntry | None, refusals: Mapping[str, str | None]) -> str:
    if entry is None:
        return "default; not measured here, see `fmscale bench kernels --tune`"
    if entry.backend == choice:
        return "measured fastest"
    return f"{entry.backend} was measured fastest but cannot serve this call: {refusals.get(entry.backend)}"


def _announce(device: str, op: str, case: str, choice: str, reason: str) -> bool:
    """Log a choice, once. Returns True, the constant that a compiled graph keeps of the call."""
    if (device, op, case) not in _announced:
        _announced[device, op, case] = f"{choice} ({reason})"
        log.info("%s on %s, %s: %s", op, device, case, _announced[device, op, case])
    return True


# The flag of torch.compiler.assume_constant_result, whose import takes seconds: torch.compile runs the function once
# per graph, while it traces, and keeps no call of it in the graph.
cast(Any, _announce)._dynamo_marked_constant = True


def launch_config(op: str, kernel: str, device: torch.device, case: str, choices: Sequence[Config]) -> Config:
    """Launch configuration of one kernel of `op`: forced, else measured, else the first of `choices`.

    `choices` are the configurations that passed the compile gate for this call. A measured configuration outside them,
    from a table of an earlier version or an edited table, is ignored with a warning.
    """
    if (op, kernel) in _forced:
        return _forced[op, kernel]
    name = device_name(device)
    entry = _entries.get((name, op, case))
    measured = entry.configs.get(kernel) if entry is not None else None
    if measured is None or measured in choices:
        return choices[0] if measured is None else measured
    if (name, op, case, kernel) not in _ignored:
        _ignored.add((name, op, case, kernel))
        log.warning(
            "%s on %s, %s: the tuning table's configuration of %s, %s, is none of this version's: %s is used; "
            "`fmscale bench kernels --tune` measures again",
            op, name, case, kernel, dict(measured), dict(choices[0]),
        )  # fmt: skip
    return choices[0]


@contextlib.contextmanager
def forced(op: str, kernel: str, chosen: Config) -> Iterator[None]:
    """Launch `kernel` of `op` with `chosen` inside the block, to validate a configuration."""
    before = dict(_forced)
    _forced[op, kernel] = chosen
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
