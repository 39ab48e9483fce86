"""`fmscale bench --read FOLDER`: checks the records of an hour and makes results and README's table of them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_hour.claims import train_claims
from benchmarks.gpu_hour.journal import FORMAT, FORMAT_VERSION, RESULTS
from benchmarks.gpu_hour.kernel_claims import kernel_claims
from benchmarks.gpu_hour.runs import Hour, Record, put_together
from benchmarks.gpu_hour.source import git
from fmscale.errors import ConfigError, FormatError
from fmscale.runtime.sinks.jsonl import read_jsonl

NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "begin": {
        "format_version": int, "mode": str, "dry_run": bool, "seconds": (int, float), "steps": list,
        "machine": dict, "commit": str, "changed": bool, "code": str,
    },
    "found": {"step": str, "job": str, "found": dict},
    "job": {"step": str, "job": str, "ok": bool, "seconds": (int, float), "reason": str},
    "step": {"step": str, "ok": bool, "seconds": (int, float), "reason": str},
    "end": {"ok": bool, "reason": str, "seconds": (int, float)},
}  # fmt: skip
"""Kind of record -> its required fields and their types."""
AGAIN = "Copy the folder again from where benchmarks/gpu_hour.sh wrote it, or run that again."


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Results of an hour's records."""

    document: Record
    """Content of a file in benchmarks/results, in the schema of benchmarks/harness.py."""
    dry_run: bool
    """True if the hour ran without a GPU."""
    notes: list[str]
    """Warnings for a reader: a torn line, failed steps, code that differs from the commit."""


def read(folder: Path) -> Reading:
    """Read the records of an hour.

    Raises ConfigError if there are no records or measurements, FormatError for a file that is torn, of another
    kind, or of a commit that this repository does not have.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise ConfigError(
            "no records of a GPU hour here",
            found=str(path),
            remedy="Name the folder that benchmarks/gpu_hour.sh printed at its end.",
        )
    records = _checked(path)
    hour = put_together(records)
    claims = kernel_claims(hour) if hour.begin["mode"] == "kernels" else train_claims(hour)
    about = hour.about.get("versions", {})
    commit = _commit(path, hour.begin)
    if not about:
        raise ConfigError(
            "the records do not say on what they were taken: step 0 came to nothing",
            found=hour.why("0"),
            remedy="Put right what it names, and run benchmarks/gpu_hour.sh again.",
        )
    if not hour.begin["dry_run"] and not about.get("gpu"):
        raise ConfigError(
            "these records were taken without a GPU",
            found=about.get("gpu"),
            remedy="Run benchmarks/gpu_hour.sh where torch.cuda.is_available() is true.",
        )
    device = {name: about[name] for name in ("gpu", "gpu_bytes", "gpus", "cuda") if name in about}
    document = {
        "name": f"gpu_{hour.begin['mode']}",
        "quick": False,
        "commit": commit,
        "machine": {**hour.begin["machine"], **device},
        "versions": about["versions"],
        "claims": [asdict(claim) for claim in claims],
    }
    return Reading(document=document, dry_run=hour.begin["dry_run"], notes=_notes(path, hour))


def keep(reading: Reading, results: Path) -> Path:
    """Write the results; the file.

    Raises ConfigError for a dry run, for an hour without measurements, and for an existing file with figures that these
    results lack.
    """
    if reading.dry_run:
        raise ConfigError(
            "these are the records of a dry run: no GPU was in it",
            found="dry_run true",
            remedy="Check them alone with --dry-run, or run benchmarks/gpu_hour.sh on a GPU.",
        )
    measured = _measured(reading.document)
    if not measured:
        raise ConfigError(
            "nothing was measured",
            found="; ".join(reading.notes),
            remedy="Look at log.txt beside the records, and run benchmarks/gpu_hour.sh again.",
        )
    path = results / f"{reading.document['name']}.json"
    lost = _measured(json.loads(path.read_text())) - measured if path.is_file() else set()
    if lost:
        raise ConfigError(
            f"{path} has figures that these records lack",
            found=", ".join(sorted(lost)),
            remedy="Delete that file to replace it all the same, or measure all steps in one hour.",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(reading.document, indent=1) + "\n")
    return path


def _checked(path: Path) -> list[Record]:
    """The records, all of known kinds. Raises FormatError with the line."""
    records: list[Record] = []
    for number, record in enumerate(read_jsonl(path), start=1):
        if number == 1 and record.get("format") != FORMAT:
            raise FormatError(f"{path} is not of a GPU hour", found=record.get("format"), remedy=AGAIN)
        if number == 1 and record.get("format_version") != FORMAT_VERSION:
            raise FormatError(
                f"{path} is of another version of the format",
                found=record.get("format_version"),
                remedy=f"This checkout reads version {FORMAT_VERSION}: read it with the checkout that wrote it.",
            )
        kind = record.get("kind")
        needed = NEEDED.get(str(kind), {}) if (number == 1) == (kind == "begin") else {}
        wrong = [name for name, type_ in needed.items() if not isinstance(record.get(name), type_)]
        if not needed or wrong:
            raise FormatError(
                f"{path}:{number}: no record of a GPU hour",
                found=f"kind {kind}, {', '.join(wrong)}" if wrong else f"kind {kind}",
                remedy=AGAIN,
            )
        records.append(record)
    if not records:
        raise FormatError(f"{path} has no whole record", found=f"{path.stat().st_size} bytes", remedy=AGAIN)
    return records


def _commit(path: Path, begin: Record) -> str:
    """The commit's short name in this repository, marked if the code differed from the commit."""
    commit = begin["commit"]
    if not commit or not git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"):
        raise FormatError(
            f"{path} is of code that this repository does not know",
            found=f"commit {commit}" if commit else "no commit",
            remedy="Fetch that commit; and where there is no .git, carry what benchmarks/gpu_wheels.sh wrote.",
        )
    return git("rev-parse", "--short", commit) + (" with changes" if begin["changed"] else "")


def _notes(path: Path, hour: Hour) -> list[str]:
    notes = []
    if not path.read_bytes().endswith(b"\n"):
        notes.append("the last line is torn and was passed over: the hour was ended while it was written")
    if not hour.end:
        notes.append("the hour did not end by itself; what it had measured by then is here")
    elif hour.end["reason"]:
        notes.append(f"the hour was {hour.end['reason']}")
    notes += [hour.why(step) for step in hour.begin["steps"] if not hour.steps.get(step, {}).get("ok")]
    if hour.begin["changed"]:
        notes.append(f"the code was that of {hour.begin['commit'][:9]} with changes that no commit has")
    return notes


def _measured(document: dict[str, Any]) -> set[str]:
    return {claim["id"] for claim in document["claims"] if claim["ours"] is not None}
