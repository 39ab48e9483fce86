"""Claims of a `train` hour, from its runs. A claim without a measurement has a reason; nothing is estimated."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_hour.more_claims import WARMUP, more_claims
from benchmarks.gpu_hour.runs import Hour, Run
from benchmarks.harness import Claim

LEAST_STEPS = 10
"""Fewest counted steps for a figure of the large run."""
TOKENS_PER_SECOND = 45_000.0
PEAK_GB = 65.0
SAVE_SECONDS = 0.05


def train_claims(hour: Hour) -> list[Claim]:
    """All claims, in the order of the steps."""
    return [*_imports(hour), *_devices(hour), *_bf16(hour), *_large(hour), *more_claims(hour)]


def _imports(hour: Hour) -> list[Claim]:
    claim = Claim(
        id="G0.import",
        what="import of DeepSpeed; files compiled by any run",
        unit="s",
        ours=None,
        target="<= 10 s, and nothing was compiled at start",
    )
    seen = hour.about.get("deepspeed")
    if seen is None:
        claim.reasons["fmscale"] = hour.why("0")
        return [claim]
    built = sorted({name for run in hour.runs.values() for name in run.end.get("extensions", ())})
    claim.ours, claim.ok = seen["import_seconds"], seen["import_seconds"] <= 10 and not built
    if built:
        claim.reasons["fmscale"] = f"compiled: {', '.join(built[:5])}"
    claim.runs = [{"system": "fmscale", "value": claim.ours}]
    return [claim]


def _devices(hour: Hour) -> list[Claim]:
    runs = hour.of("1")
    base = next((run for run in runs if run.settings.get("device") == "cpu" and run.end), None)
    others = [run for run in runs if run is not base and run.end]

    def apart(at: int) -> Callable[[Run], float]:
        return lambda run: _apart(run, base, at) if base else 0.0

    whole = f"{len(others) + bool(base)} of {len(runs)} runs came out"
    first = _worst("G1.first_loss", "fp32: loss of step 1, apart from a CPU's", others, apart(0), 1e-5, whole)
    last = _worst("G1.last_loss", "fp32: loss of the last step, apart from a CPU's", others, apart(-1), 1e-3, whole)
    order = Claim(
        id="G1.order",
        what="orders in which CPU and GPU runs received their documents",
        unit="different orders",
        ours=None,
        target="1",
    )
    if base and others:
        hashes = [(run.job, str(run.end["order_hash"])) for run in (base, *others)]
        order.ours = float(len({one for _, one in hashes}))
        order.ok = order.ours == 1 and hashes[0][1] != "None"
        order.runs = [{"system": job, "value": one} for job, one in hashes]
    return [_whole(hour, "1", claim, runs) for claim in (first, last, order)]


def _bf16(hour: Hour) -> list[Claim]:
    runs = hour.of("2")
    done = [run for run in runs if run.end]
    base = next((run for run in done if not run.settings["compile"]), None)
    others = [run for run in done if run is not base] if base else []
    whole = f"{len(done)} of {len(runs)} runs came out"
    loss = _worst(
        "G2.first_loss", "bf16: loss of step 1, apart from ZeRO-2's without compile", others,
        lambda run: _apart(run, base, 0) if base else 0.0, 2e-3, whole,
    )  # fmt: skip
    compiled = [run for run in done if run.settings["compile"]]
    full = [run for run in compiled if run.settings["recompute"] == "full"]
    graphs = Claim(
        id="G2.graphs",
        what="graphs of a compiled run, the most",
        unit="graphs",
        ours=max((_graphs(run) for run in compiled), default=None),
        target="1 or 2 in each, no graph break",
        ok=bool(compiled) and all(1 <= _graphs(run) <= 2 and run.end["graph_breaks"] == 0 for run in compiled),
        runs=[{"system": run.job, "value": _graphs(run)} for run in compiled],
    )
    recomputed = Claim(
        id="G2.recompute",
        what="graphs of a run compiled and with recompute: full, the fewest",
        unit="graphs",
        ours=min((_graphs(run) for run in full), default=None),
        target=">= 1: recompute does not switch compile off",
        ok=bool(full) and all(_graphs(run) >= 1 for run in full),
        runs=[{"system": run.job, "value": _graphs(run)} for run in full],
    )
    return [_whole(hour, "2", claim, runs) for claim in (loss, graphs, recomputed, _repeat(done))]


def _repeat(done: Sequence[Run]) -> Claim:
    claim = Claim(
        id="G2.repeat",
        what="losses and gradient norms that differ between a run and the same run again",
        unit="numbers",
        ours=None,
        target="0: the same bits",
    )
    by_name = {run.job: run for run in done}
    again = next((run for run in done if run.job.endswith("-again")), None)
    first = by_name.get(again.job.removesuffix("-again")) if again else None
    if again and first:
        a, b = ([one[name] for one in run.steps for name in ("loss", "grad_norm")] for run in (first, again))
        claim.ours = float(sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b)))
        claim.ok = claim.ours == 0 and bool(a)
        claim.runs = [{"system": run.job, "value": run.steps[-1]["loss"]} for run in (first, again)]
    return claim


def _large(hour: Hour) -> list[Claim]:
    claims = {
        "T3.h200": ("1.3 B, T = 2048, one GPU, the store and checkpoints included", "tokens/s", ">= 45,000"),
        "T3.mfu": ("the same as a share of the GPU's peak", "of peak", ">= 0.39"),
        "T3.data_stall": ("the share of the steps' time that waited for data", "of time", "< 0.005"),
        "T3.first_save": ("what the first save held training up", "s", f"< {SAVE_SECONDS}"),
        "T3.later_saves": ("what a later save held training up, the most", "s", f"< {SAVE_SECONDS}"),
        "T3.state": (
            "memory of the state between steps, over what `plan` says",
            "GB",
            "within 10 % of the plan",
        ),
        "T3.peak": ("memory at its peak", "GB", f"<= {PEAK_GB:.0f} GB"),
    }
    made = {
        id: Claim(id=id, what=what, unit=unit, ours=None, target=target) for id, (what, unit, target) in claims.items()
    }
    run = next(iter(hour.of("6")), Run(job="", step="6"))
    counted = run.steps[WARMUP:]
    if len(counted) >= LEAST_STEPS:
        seconds = sum(one["seconds"] for one in counted)
        tokens = sum(one["tokens"] for one in counted) / seconds
        each = [one["tokens_per_second"] for one in counted]
        _set(made["T3.h200"], tokens, tokens >= TOKENS_PER_SECOND, each, tokens / TOKENS_PER_SECOND)
        made["T3.h200"].peers = {"llm-foundry (its published figure per H100)": TOKENS_PER_SECOND}
        stall = sum(one["data_stall"] for one in counted) / seconds
        _set(made["T3.data_stall"], stall, stall < 0.005, [one["data_stall"] for one in counted])
        if all("mfu" in one for one in counted):
            each = [one["mfu"] for one in counted]
            _set(made["T3.mfu"], statistics.median(each), statistics.median(each) >= 0.39, each)
    # a run waits for its last save, so its time does not show the cost of a save
    done = [one for one in run.saves if one["state"] == "acknowledged"]
    saves = [one.get("blocking_seconds", 0.0) for one in done if one["saved_step"] != run.settings["steps"]]
    if saves:
        first = saves[0]
        _set(made["T3.first_save"], first, first < SAVE_SECONDS, [first])
    if len(saves) > 1:
        later = max(saves[1:])
        _set(made["T3.later_saves"], later, later < SAVE_SECONDS, saves[1:])
    if run.stepped.get("allocated_bytes"):
        state, planned = run.stepped["allocated_bytes"] / 1e9, run.stepped["planned_bytes"] / 1e9
        _set(made["T3.state"], state, abs(state / planned - 1) <= 0.1, [state], state / planned)
        made["T3.state"].limit = planned
    if run.end.get("peak_bytes"):
        peak = run.end["peak_bytes"] / 1e9
        _set(made["T3.peak"], peak, peak <= PEAK_GB, [peak])
    for claim in made.values():
        if claim.ours is None:
            claim.reasons["fmscale"] = hour.why("6")
    return list(made.values())


def _worst(id: str, what: str, runs: Sequence[Run], apart: Callable[[Run], float], bound: float, whole: str) -> Claim:
    """The largest relative difference of runs, which must stay within a bound."""
    values = [(run.job, apart(run)) for run in runs]
    worst = max((value for _, value in values), default=None)
    return Claim(
        id=id,
        what=what,
        unit="relative",
        ours=worst,
        target=f"<= {bound:g}; {whole}",
        ok=worst is not None and worst <= bound,
        runs=[{"system": job, "value": value} for job, value in values],
    )


def _whole(hour: Hour, step: str, claim: Claim, runs: Sequence[Run]) -> Claim:
    """A claim that is met only if every run of its step succeeded."""
    failed = [run for run in runs if not run.end]
    if claim.ours is None or failed or not hour.steps.get(step, {}).get("ok"):
        claim.ok = False
        claim.reasons["fmscale"] = hour.why(step)
    return claim


def _apart(run: Run, base: Run, at: int) -> float:
    ours, theirs = run.steps[at]["loss"], base.steps[at]["loss"]
    return abs(ours / theirs - 1) if ours is not None and theirs else float("inf")


def _graphs(run: Run) -> int:
    return int(run.end["unique_graphs"])


def _set(claim: Claim, value: float, ok: bool, runs: Sequence[Any], ratio: float | None = None) -> None:
    claim.ours, claim.ok, claim.ratio = value, ok, ratio
    claim.runs = [{"system": "fmscale", "value": one} for one in runs]
