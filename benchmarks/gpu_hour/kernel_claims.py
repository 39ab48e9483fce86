"""Claims of a `kernels` hour: one for each test file, met if all its tests passed; of choices; of the bench's rows."""

from typing import Any

from benchmarks.gpu_hour.runs import Hour, Record
from benchmarks.harness import Claim

TIE = 0.98
"""A configuration counts as slower below this share of the fastest one's speed."""


def kernel_claims(hour: Hour) -> list[Claim]:
    """All claims, in the order of the steps that were asked for."""
    asked = {"tests": _tests, "variants": _variants, "rows": _rows}
    return [claim for step, claims in asked.items() if step in hour.begin["steps"] for claim in claims(hour)]


def _variants(hour: Hour) -> list[Claim]:
    """The shipped configuration beside the others, and a clean cache beside a dirty one."""
    found: dict[str, Record] = {one["id"]: one for run in hour.of("variants") for one in run.measured}
    claims = []
    for name, one in found.items():
        first, *others = one["rates"] or {"": 0.0}
        rates: dict[str, float] = one["rates"]
        best = max(rates.values(), default=None)
        claim = Claim(
            id=f"A.{name}", what=f"{name}, {one['variant']}: {first}", unit=one["unit"], ours=rates.get(first),
            peers={other: rates[other] for other in others}, reasons=dict(one["reasons"]),
            target=f">= {TIE:g} x each other", runs=[{"system": key, **times} for key, times in one["times"].items()],
        )  # fmt: skip
        if best is not None:
            claim.ratio = rates[first] / best
            claim.ok = claim.ratio >= TIE
        claims.append(claim)
    if not claims:
        claims = [Claim(id="A.variants", what="variants of kernels", unit="TFLOP/s", ours=None,
                        reasons={"fmscale": hour.why("variants")})]  # fmt: skip
    return claims


def _rows(hour: Hour) -> list[Claim]:
    """The claims of `fmscale bench kernels` for the rows that were measured; a later record of a row replaces it."""
    from benchmarks.kernels.ceilings import Ceilings
    from benchmarks.kernels.claims import assemble
    from benchmarks.kernels.contest import Run as RowRun

    limits, rows = None, {}
    for one in (one for run in hour.of("rows") for one in run.measured):
        values: dict[str, Any] = {name: value for name, value in one.items() if name != "about"}
        if one["about"] == "ceilings":
            limits = Ceilings(**values)
        elif values["rates"] or (one["id"], one["variant"]) not in rows:
            rows[one["id"], one["variant"]] = RowRun(**values)
    if not rows:
        return [Claim(id="B.rows", what="attention at 8k tokens", unit="TFLOP/s", ours=None,
                      reasons={"fmscale": hour.why("rows")})]  # fmt: skip
    made = assemble(list(rows.values()), limits)
    kept = ("what", "unit", "ours", "peers", "limit", "ratio", "target", "reasons", "runs")
    return [
        Claim(id=f"B.{one['id']}", ok=one["ok"] is True, **{name: one[name] for name in kept})
        for one in made
        if one["runs"]
    ]


def _tests(hour: Hour) -> list[Claim]:
    """A claim a file, in the order of collection; a single claim for all if no file was collected."""
    files: dict[str, dict[str, Record | None]] = {}
    for run in hour.of("tests"):
        for test in run.collected:
            files.setdefault(test.partition("::")[0], {})[test] = run.tests.get(test)
    claims = [_claim(hour, file, tests) for file, tests in files.items()]
    unread = [run for run in hour.of("tests") if not run.collected]
    for run in unread or ([] if claims else [None]):
        name = run.job if run else "tests"
        claims.append(
            Claim(id=f"K.{name}", what="tests on a GPU that passed", unit="tests", ours=None, target="all pass",
                  reasons={"fmscale": run.why if run else hour.why("tests")})
        )  # fmt: skip
    return claims


def _claim(hour: Hour, file: str, tests: dict[str, Record | None]) -> Claim:
    ended = {name: one for name, one in tests.items() if one is not None}
    passed = [name for name, one in ended.items() if one["outcome"] == "passed"]
    skipped = [name for name, one in ended.items() if one["outcome"] == "skipped"]
    bad = {name: one for name, one in ended.items() if one["outcome"] == "failed"}
    claim = Claim(
        id=f"K.{file.removeprefix('tests/').removesuffix('.py').replace('/', '.')}",
        what=f"tests of {file} that passed",
        unit="tests",
        ours=float(len(passed)) if len(skipped) < len(tests) else None,
        ratio=len(passed) / len(tests),
        target=f"all {len(tests)} pass",
        ok=len(passed) == len(tests),
        runs=[{"system": name, "value": one["seconds"], "outcome": one["outcome"]} for name, one in ended.items()],
    )
    reasons = [f"{name.partition('::')[2]}: {one['reason'][-300:]}" for name, one in list(bad.items())[:5]]
    if skipped:
        reasons.append(f"{len(skipped)} skipped: {ended[skipped[0]]['reason'][-120:]}")
    if len(ended) < len(tests):
        reasons.append(f"{len(tests) - len(ended)} did not end: {hour.why('tests')}")
    if reasons:
        claim.reasons["fmscale"] = "\n".join(reasons)
    return claim
