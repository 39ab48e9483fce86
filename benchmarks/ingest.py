"""`fmscale bench ingest --check`: odd and hostile input, document by document against plain readers (`odd/`)."""

import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.odd.case import Case
from benchmarks.odd.changing import CHANGING
from benchmarks.odd.check import MEGABYTE, Check, Verdict
from benchmarks.odd.lines import ARRAYS, LINES
from benchmarks.odd.memory import MEMORY
from benchmarks.odd.objects import OBJECTS
from benchmarks.odd.places import LINKS, NAMES, SPECIAL
from benchmarks.odd.records import RECORDS
from benchmarks.odd.streams import STREAMS
from benchmarks.odd.tables import ARROW, PARQUET, SAVED
from benchmarks.odd.texts import ENCODINGS, GUESSES
from fmscale.errors import ConfigError

CASES = [
    *(*LINES, *ARRAYS, *ENCODINGS, *GUESSES, *STREAMS, *PARQUET, *ARROW, *SAVED, *RECORDS),
    *(*LINKS, *NAMES, *SPECIAL, *OBJECTS, *CHANGING, *MEMORY),
]

DRAWN = 25
"""Cases of a quick run."""


def run(*, quick: bool = False, only: Sequence[str] = (), seed: int = 0) -> list[dict[str, Any]]:
    """Check all cases, or those with a word of `only` in their names. `quick`: DRAWN cases, by a seed, of those that
    share jobs. Returns a line a case. Raises ConfigError for a word without a case.
    """
    return [row(verdict) for verdict in verdicts(choose(quick=quick, only=only, seed=seed))]


def choose(*, quick: bool, only: Sequence[str], seed: int) -> list[Case]:
    """The cases to run."""
    for word in only:
        if not any(word in case.id for case in CASES):
            remedy = f"One of the kinds: {', '.join(sorted({case.kind for case in CASES}))}."
            raise ConfigError("no case has this word in its name", found=word, remedy=remedy)
    chosen = [case for case in CASES if not only or any(word in case.id for word in only)]
    if not quick:
        return chosen
    cheap = [case for case in chosen if case.group != case.id and case.kind not in ("damage", "s3")]
    return random.Random(seed).sample(cheap, min(DRAWN, len(cheap)))


def verdicts(cases: Sequence[Case]) -> Iterator[Verdict]:
    """Make, ingest and judge the cases, group by group."""
    # Plain readers take integers of any length.
    sys.set_int_max_str_digits(0)
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    with tempfile.TemporaryDirectory(prefix="fmscale-check-") as folder, closing(Check(Path(folder))) as check:
        for group in groups.values():
            yield from check.run(group)


def row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as a line of the table."""
    return {
        "ok": not verdict.faults,
        "kind": verdict.case.kind,
        "name": verdict.case.name,
        "expected": verdict.expected,
        "seen": verdict.seen,
        "memory": f"{verdict.peak / MEGABYTE:.0f} MB" if verdict.case.alone else "",
        "faults": "; ".join(verdict.faults),
    }


def run_command(options: Sequence[str]) -> int:
    """Print a line a case, as it is judged. Returns 1 with --check if a case failed."""
    given = set(options)
    words = [word for option in options if option.startswith("--only=") for word in option[7:].split(",")]
    known = {"--quick", "--check", "--json"}
    if unknown := [option for option in given - known if not option.startswith("--only=")]:
        raise ConfigError(
            "ingest has no such option", found=unknown[0], remedy=f"One of: {', '.join(sorted(known))}, --only."
        )
    failed = count = 0
    rows = []
    for verdict in verdicts(choose(quick="--quick" in given, only=words, seed=0)):
        count += 1
        failed += bool(verdict.faults)
        rows.append(row(verdict))
        if "--json" not in given:
            print(told(rows[-1]), flush=True)
    if "--json" in given:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{count} cases, {failed} failed")
    return 1 if failed and "--check" in given else 0


def told(row: dict[str, Any]) -> str:
    """A line of the table, for people; a fault follows on a line of its own."""
    line = f"{'ok' if row['ok'] else 'FAILED':6}  {row['kind']}: {row['name']}  expected {row['expected']}"
    line += f"  seen {row['seen'][:300]!r}" if row["seen"] != row["expected"] else "  seen the same"
    line += f"  {row['memory']}" if row["memory"] else ""
    return line + (f"\n        {row['faults'][:600]!r}" if row["faults"] else "")
