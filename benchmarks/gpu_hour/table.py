"""README's table of GPU results, from `benchmarks/results/`."""

import json
from pathlib import Path
from typing import Any

from fmscale.errors import ConfigError

BEGIN, END = "<!-- gpu -->\n", "<!-- /gpu -->"
NOTHING = (
    "Nothing of this has run on a GPU yet: the trainer's numbers are those of CPUs, the kernels have run under\n"
    "Triton's interpreter, and there is no figure of a GPU here.\n"
)


def as_markdown(results: Path) -> str:
    """The table, or a sentence for missing results."""
    found = {mode: results / f"gpu_{mode}.json" for mode in ("train", "kernels")}
    documents = {mode: json.loads(path.read_text()) for mode, path in found.items() if path.is_file()}
    if not documents:
        return NOTHING
    rows = [row for mode, document in documents.items() for row in _rows(mode, document)]
    places = [f"`{mode}` on {_place(document)}" for mode, document in documents.items()]
    absent = [f"`{mode}` has not run on a GPU yet" for mode in found if mode not in documents]
    return "\n".join(
        [
            "| on a GPU | found | target | met |",
            "|---|---|---|---|",
            *rows,
            "",
            "; ".join(places + absent) + ".\n",
        ]
    )


def fill(readme: Path, results: Path) -> None:
    """Put the table between the markers of a README."""
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ConfigError(
            f"{readme} has no place for the table of GPU results",
            found=f"no {BEGIN.strip()} and {END}",
            remedy="Put these two lines where it shall stand.",
        )
    readme.write_text(before + begin + as_markdown(results) + end + after)


def _rows(mode: str, document: dict[str, Any]) -> list[str]:
    claims = document["claims"]
    tests = [claim for claim in claims if mode == "kernels" and claim["id"].startswith("K.")]
    rows = []
    if tests:
        runs = [run for claim in tests for run in claim["runs"]]
        passed = sum(run["outcome"] == "passed" for run in runs)
        ok = all(claim["ok"] for claim in tests)
        rows = [f"| tests of kernels and models | {passed} of {len(runs)} passed | all pass | {_met(ok)} |"]
    return rows + [
        f"| {claim['what']} | {_found(claim)} | {claim['target'].partition(';')[0]} | {_met(claim['ok'])} |"
        for claim in claims
        if claim not in tests
    ]


def _found(claim: dict[str, Any]) -> str:
    if claim["ours"] is None:
        return "not measured"
    value = claim["ours"]
    return f"{value:,.0f} {claim['unit']}" if abs(value) >= 1000 else f"{value:.3g} {claim['unit']}"


def _met(ok: bool) -> str:
    return "yes" if ok else "**no**"


def _place(document: dict[str, Any]) -> str:
    versions = document["versions"]
    return (
        f"{document['machine']['gpu']}, torch {versions.get('torch', '?')}, Triton {versions.get('triton', '?')}, "
        f"commit {document['commit']}"
    )
