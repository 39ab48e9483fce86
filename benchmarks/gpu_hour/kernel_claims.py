"""Claims of a `kernels` hour: a claim for each test file, met if all its tests passed."""

from benchmarks.gpu_hour.runs import Hour, Record
from benchmarks.harness import Claim


def kernel_claims(hour: Hour) -> list[Claim]:
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
