"""W6.shuffle: the shuffle of class-sorted data by windows, and the bytes that they read.

The rows' places in the corpus come from the received tokens. A place's class is its part of the corpus. Quality is
the mean entropy of the classes in a batch, over that of a full permutation of the same rows, and the correlation
of the places of consecutive rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Claim, peer_python, run_json
from benchmarks.peers.common import ROW_TOKENS
from benchmarks.peers.ours import write_dataset

UNIT_ROWS = 32
UNIT_BYTES = UNIT_ROWS * ROW_TOKENS * 2
PARTS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Windows of the curve, as parts of the data. The host's memory holds the largest window and a quarter more, as the
next window is read while the previous window is consumed.
"""
TARGETS = (0.05, 0.25)
"""Windows in the target."""
BATCH, CLASSES = 128, 16
"""Rows and classes of the verdict, as in `fmscale dataset audit`: 8 rows a class, so that a full shuffle fills every
class.
"""
PERMUTATIONS = 4
"""Full shuffles; the figure is compared with their mean."""
OTHERS = ((8, 16), (512, 64))
"""(batch, classes) shown beside it: the batch of this benchmark, and a larger case that is harder to fill."""


def shuffle_claims(work: Path, *, units: int, parts: Sequence[float] = PARTS) -> list[Claim]:
    """W6.shuffle on a corpus of `units` units of 262 kB."""
    corpus, store = work / "sorted.u16", str(work / "sorted")
    rows = units * UNIT_ROWS
    make_sorted(corpus, rows)
    write_dataset(corpus, store)
    corpus.unlink()
    runs, arguments = [], []
    for part in sorted({*parts, *TARGETS}):
        window = max(int(part * units), 2)
        # The last window of an epoch takes the remaining units, up to twice as many.
        largest = units - (max(units // window, 1) - 1) * window
        memory = round((largest + window / 4 + 4) * UNIT_BYTES)
        runs.append(
            {
                "system": f"window {part:.1%}",
                "part": part,
                "units": window,
                "memory_part": memory / (units * UNIT_BYTES),
            }
        )
        arguments += [str(window), str(memory), str(work / f"sorted-{window}.npy")]
    command = [peer_python(), "-m", "benchmarks.peers.shuffled", store, str(rows), *arguments]
    found = run_json(command, timeout=900)
    for run, out, read in zip(runs, arguments[2::3], found, strict=True):
        ratio = max(read["asked_bytes"], read["read_bytes"]) / (rows * ROW_TOKENS * 2)
        run |= {**quality(np.load(out)), **read, "bytes_ratio": ratio}
    table(runs)
    judged = [run for run in runs if run["part"] in TARGETS]
    return [
        Claim(
            id="W6.shuffle",
            what=f"entropy in batches of {BATCH} of class-sorted data over a full shuffle's, window 5 % of "
            f"{rows * ROW_TOKENS * 2 / 1e9:.2f} GB (peer column: 25 %; bytes read over the data's)",
            unit="ratio",
            ours=judged[0]["value"],
            peers={
                "window 25 %": judged[1]["value"],
                "bytes at 5 %": judged[0]["bytes_ratio"],
                "bytes at 25 %": judged[1]["bytes_ratio"],
            },
            ratio=judged[0]["value"],
            target=">= 0.99 at 5 and 25 %, lag-1 correlation <= full + 0.1, bytes <= 1.1 x",
            ok=all(good(run) for run in judged),
            runs=runs,
        )
    ]


def make_sorted(path: Path, rows: int) -> None:
    """Rows whose first two tokens are their number, the rest the class: sorted by construction."""
    with path.open("wb") as file:
        for first in range(0, rows, 8192):
            number = np.arange(first, min(first + 8192, rows))
            block = np.empty((len(number), ROW_TOKENS), dtype=np.uint16)
            block[:] = (number * CLASSES // rows)[:, None]
            block[:, 0], block[:, 1] = number & 0xFFFF, number >> 16
            block.tofile(file)


def quality(place: np.ndarray) -> dict[str, Any]:
    """Figures of places in delivered order: `value`, lag-1 correlations, and other batches and classes.

    Raises RuntimeError unless every place occurs once.
    """
    if not np.array_equal(np.sort(place), np.arange(len(place))):
        raise RuntimeError("the epoch does not hold every row once")
    rng = np.random.default_rng(0)
    full = [rng.permutation(len(place)) for _ in range(PERMUTATIONS)]
    ratios = {
        f"batch {batch}, {classes} classes": _entropy(place, batch, classes)
        / float(np.mean([_entropy(one, batch, classes) for one in full]))
        for batch, classes in ((BATCH, CLASSES), *OTHERS)
        if batch <= len(place)
    }
    return {
        "value": next(iter(ratios.values())),
        "lag1_correlation": _lag1(place),
        "lag1_correlation_full": float(np.mean([_lag1(one) for one in full])),
        "entropy_ratios": ratios,
    }


def good(run: dict[str, Any]) -> bool:
    """True if a window meets the target."""
    return bool(
        run["value"] >= 0.99
        and run["lag1_correlation"] <= run["lag1_correlation_full"] + 0.1
        and run["bytes_ratio"] <= 1.1
    )


def table(runs: list[dict[str, Any]]) -> None:
    """Print the curve."""
    columns = list(runs[0]["entropy_ratios"])
    print(
        "W6 curve: window, units, entropy ratio at " + "; ".join(columns) + ", lag-1 correlation, bytes",
        flush=True,
    )
    for run in runs:
        ratios = "  ".join(f"{ratio:.4f}" for ratio in run["entropy_ratios"].values())
        print(
            f"  {run['part']:6.1%} {run['units']:6d}  {ratios}  {run['lag1_correlation']:+.3f}  "
            f"{run['bytes_ratio']:.3f}",
            flush=True,
        )


def _entropy(place: np.ndarray, batch: int, classes: int) -> float:
    """Mean entropy in nats of the classes in batches of consecutive rows."""
    kind = place * classes // len(place)
    groups = kind[: len(kind) // batch * batch].reshape(-1, batch)
    counts = np.stack([(groups == one).sum(axis=1) for one in range(classes)], axis=1) / batch
    return float(np.where(counts > 0, -counts * np.log(np.maximum(counts, 1e-12)), 0.0).sum(axis=1).mean())


def _lag1(place: np.ndarray) -> float:
    return float(np.corrcoef(place[:-1], place[1:])[0, 1])
