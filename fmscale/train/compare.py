"""Comparison of two runs: their metrics step by step, and the samples that their models received."""

import math
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fmscale.data.provenance.delivery import order_hash, read_records, without_repeats
from fmscale.errors import ConfigError
from fmscale.runtime.sinks.jsonl import read_jsonl

TIMES = re.compile(r"time|seconds|data_stall|ckpt_blocking|mfu|\w+_per_second(_per_gpu)?")
"""Names of metrics that differ between any two runs, even if both compute the same."""
EXACT = frozenset({"tokens", "applied"})
"""Metrics that are counts; no tolerance applies to them."""
DELIVERED = ("source", "row", "digest", "pieces")
"""Columns of a delivered sample that are compared: its place in the source, its digest, its documents or record."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class History:
    """Records in a run's folder."""

    folder: Path
    steps: dict[int, Record]
    """Metrics of each step; the later record where a resumed run took a step again."""
    evaluations: dict[int, Record]
    """Held-out losses after a number of steps."""
    repeated: int
    """Records that a later record of the same step replaced."""
    delivered: pa.Table | None
    """Delivered samples, each once in k order; None without delivery records."""
    redelivered: int
    """Samples that were delivered again after a resume."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A place where two runs differ."""

    step: int
    """The step, counted from 1 as in the metrics."""
    what: str
    """Name of the metric, or of the sample's column."""
    a: Any
    """Value in the first run; None if absent."""
    b: Any
    """Value in the second run; None if absent."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The result of a comparison."""

    steps: int
    """Number of steps that both have."""
    only: dict[str, str]
    """Ranges that only one run has, under `a_steps`, `b_steps`, and so on for `samples` and `evaluations`."""
    exact: bool
    """True if all compared values are equal to the last bit, and `only` is empty."""
    parts: dict[str, Difference]
    """Metric -> its first difference beyond the tolerance."""
    largest: dict[str, float]
    """Metric -> the largest relative difference above 0."""
    samples: int | None
    """Number of delivered samples that both have; None unless both runs have delivery records."""
    order_hashes: tuple[str, str] | None
    """Hashes over all delivered samples of each run, in k order."""
    notes: list[str] = field(default_factory=list)
    """Facts that a reader needs to judge the result."""

    @property
    def first(self) -> Difference | None:
        """The earliest of `parts`."""
        return min(self.parts.values(), key=lambda d: d.step, default=None)

    @property
    def same(self) -> bool:
        """True if all compared values agree within the tolerance, and `only` is empty."""
        return not self.parts and not self.only


def read_history(folder: Path) -> History:
    """Read a run's folder. Raises ConfigError for a folder without metrics, FormatError for damaged metrics,
    DataError if a sample was delivered twice with different content.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        remedy = "Name the folder that `fmscale train` writes to: train.folder/train.run, such as runs/demo."
        raise ConfigError("no metrics of a run here", found=str(path), remedy=remedy)
    steps: dict[int, Record] = {}
    evaluations: dict[int, Record] = {}
    repeated = 0
    for record in read_jsonl(path):
        if record.get("event") == "evaluation":
            evaluations[record["step"]] = record
        elif "event" not in record:
            repeated += record["step"] in steps
            steps[record["step"]] = record
    files = sorted((folder / "delivery").glob("*.arrow"))
    rows = read_records(files) if files else None
    once = without_repeats(rows) if rows is not None else None
    return History(
        folder=folder,
        steps=steps,
        evaluations=evaluations,
        repeated=repeated,
        delivered=once,
        redelivered=len(rows) - len(once) if rows is not None and once is not None else 0,
    )


def compare(a: History, b: History, *, tolerance: float = 0.0, common: bool = False) -> Comparison:
    """Compare two runs.

    Args:
        a: the first run.
        b: the second run.
        tolerance: relative difference up to which two numbers count as the same; 0 asks for equal numbers.
        common: compare only the steps and samples that both have, for a run under way.

    Raises ConfigError for runs that have no step in common.
    """
    if not a.steps.keys() & b.steps.keys():
        raise ConfigError(
            "the runs have no step in common",
            found={str(run.folder): _ranges(sorted(run.steps)) or "no steps" for run in (a, b)},
            remedy="Metrics are written every train.log_every steps; look again when there are some.",
        )
    parts: dict[str, Difference] = {}
    largest: dict[str, float] = {}
    only: dict[str, str] = {}
    for kind in ("steps", "evaluations"):
        records_a, records_b = getattr(a, kind), getattr(b, kind)
        only |= _only(records_a.keys(), records_b.keys(), kind)
        for step in sorted(records_a.keys() & records_b.keys()):
            for name, left, right in _values(records_a[step], records_b[step]):
                gap = _gap(left, right)
                if gap:
                    largest[name] = max(gap, largest.get(name, 0.0))
                if gap > (0.0 if name in EXACT else tolerance):
                    parts.setdefault(name, Difference(step=step, what=name, a=left, b=right))
    samples, hashes = None, None
    if a.delivered is not None and b.delivered is not None:
        shared_a, shared_b, alone = _shared(a.delivered, b.delivered)
        samples = len(shared_a)
        hashes = (order_hash(a.delivered), order_hash(b.delivered))
        only |= alone
        parts |= _delivered_parts(shared_a, shared_b)
    only = {} if common else only
    return Comparison(
        steps=len(a.steps.keys() & b.steps.keys()),
        only=only,
        exact=not largest and not parts and not only,
        parts=parts,
        largest=largest,
        samples=samples,
        order_hashes=hashes,
        notes=_notes(first=a, second=b),
    )


def _values(a: Record, b: Record) -> Iterator[tuple[str, Any, Any]]:
    """(name, value, value) of each compared metric; None where a record lacks it."""
    for name in dict.fromkeys((*a, *b)):
        if not TIMES.fullmatch(name) and name not in ("step", "event"):
            yield name, a.get(name), b.get(name)


def _gap(a: Any, b: Any) -> float:
    """Relative difference: 0 for equal values, inf for values that cannot be near (a text such as "nan")."""
    if a == b:
        return 0.0
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in (a, b)):
        return math.inf
    return float(abs(a - b) / max(abs(a), abs(b)))


def _only(in_a: Set[int], in_b: Set[int], kind: str) -> dict[str, str]:
    """Ranges of numbers that only one side has."""
    sides = {f"a_{kind}": sorted(in_a - in_b), f"b_{kind}": sorted(in_b - in_a)}
    return {side: _ranges(numbers) for side, numbers in sides.items() if numbers}


def _ranges(numbers: list[int]) -> str:
    """Sorted numbers as `1-4, 9`."""
    out = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in out[:8]]
    return ", ".join(shown) + (f", and {len(out) - 8} more ranges" if len(out) > 8 else "")


def _shared(a: pa.Table, b: pa.Table) -> tuple[pa.Table, pa.Table, dict[str, str]]:
    """Samples of both runs in k order, from each table, and ranges of the samples that only a single run has."""
    k_a, k_b = a["k"].to_numpy(), b["k"].to_numpy()
    _, at_a, at_b = np.intersect1d(k_a, k_b, assume_unique=True, return_indices=True)
    alone = _only(set(k_a.tolist()), set(k_b.tolist()), "samples") if len(at_a) < max(len(a), len(b)) else {}
    return a.take(pa.array(at_a)), b.take(pa.array(at_b)), alone


def _delivered_parts(a: pa.Table, b: pa.Table) -> dict[str, Difference]:
    """The first sample that differs, for each column that differs."""
    parts = {}
    for name in DELIVERED:
        at = first_unequal(a[name], b[name])
        if at is not None:
            value_a, value_b = (_shown(table[name][at].as_py()) for table in (a, b))
            what = f"{name} of sample {a['k'][at].as_py()}"
            # Delivery records count steps from 0, metrics count from 1.
            step = a["step"][at].as_py() + 1
            parts[f"delivered {name}"] = Difference(step=step, what=what, a=value_a, b=value_b)
    return parts


def first_unequal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> int | None:
    """Index of the first place where two columns of equal length differ; None for equal columns. Halves the
    columns repeatedly: this makes no Python objects of nested types, and compares no row more than twice.
    """
    if a.equals(b):
        return None
    at, size = 0, len(a)
    while size > 1:
        half = size // 2
        if a.slice(at, half).equals(b.slice(at, half)):
            at, half = at + half, size - half
        size = half
    return at


def _shown(value: Any) -> Any:
    """A delivered value for people and JSON: bytes in hex, pieces as documents or records with their offsets."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list):
        return ", ".join(f"{piece['document'].hex()}+{piece['offset']}" for piece in value) or "no content"
    return value


def _notes(**histories: History) -> list[str]:
    notes = []
    for name, run in histories.items():
        if run.repeated:
            notes.append(f"the {name} run took {run.repeated} steps again after a resume; the later record counts")
        if run.redelivered:
            notes.append(f"the {name} run delivered {run.redelivered} samples again after a resume, the same bytes")
    lacking = [name for name, run in histories.items() if run.delivered is None]
    if lacking:
        runs = "neither run has" if len(lacking) == 2 else f"the {lacking[0]} run has no"
        notes.append(f"{runs} delivery records (train.record_delivery), so what was delivered is not compared")
    return notes
