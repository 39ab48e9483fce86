"""Claims of a `train` hour that explain its main figures: 124 M, a kill, memory pages, recompute."""

from collections.abc import Sequence

from benchmarks.gpu_hour.runs import Hour, Record, Run
from benchmarks.harness import Claim

WARMUP = 10
"""Steps of a run that do not count: compilation and first reads."""
SMALL_WARMUP = 3
"""The same of a run of 15 steps."""
COMPILED_TOKENS = 300_000.0
WAITS = 3.0
"""Waits of the host for the device in a step: the norm, the overflow, the record of every 5th step."""
PINNED_GB_PER_SECOND = 40.0
RECOMPUTE_SHARE = 0.7


def more_claims(hour: Hour) -> list[Claim]:
    """Claims of the steps 5, 3, 4 and 8."""
    return [*_speed(hour), _killed(hour), *_pages(hour), *_recompute(hour)]


def rate(run: Run, warmup: int) -> float | None:
    """Tokens/s behind the warm-up; None without such steps."""
    counted = run.steps[warmup:]
    seconds = sum(one["seconds"] for one in counted)
    return sum(one["tokens"] for one in counted) / seconds if seconds else None


def _claim(
    hour: Hour, step: str, id: str, what: str, unit: str, target: str, value: float | None, ok: bool,
    runs: Sequence[tuple[str, float]] = (),
) -> Claim:  # fmt: skip
    """A claim of one value; without the value it says why."""
    reasons = {"fmscale": hour.why(step)} if value is None else {}
    rows = [{"system": name, "value": each} for name, each in runs or ([(id, value)] if value is not None else [])]
    return Claim(id=id, what=what, unit=unit, ours=value, target=target, ok=value is not None and ok, reasons=reasons,
                 runs=rows)  # fmt: skip


def _speed(hour: Hour) -> list[Claim]:
    runs = {run.job: run for run in hour.of("5")}
    compiled, eager = (rate(runs[name], WARMUP) if name in runs else None for name in ("124m-compiled", "124m-eager"))
    gain = compiled / eager if compiled and eager else None
    profiles: dict[str, Record] = {name: run.end["profile"] for name, run in runs.items() if "profile" in run.end}
    best = profiles.get("124m-compiled", {})

    def profiled(name: str) -> list[tuple[str, float]]:
        return [(job, one[name]) for job, one in profiles.items() if one.get(name) is not None]

    waits, pause, pageable = (best.get(name) for name in ("waits", "boundary_seconds", "pageable_copies"))
    return [
        _claim(hour, "5", "G5.tokens", "124 M, T = 2048, compiled", "tokens/s", f">= {COMPILED_TOKENS:,.0f}", compiled,
               compiled is not None and compiled >= COMPILED_TOKENS),
        _claim(hour, "5", "G5.compile", "124 M: compiled over eager", "x", ">= 1.0", gain, (gain or 0) >= 1.0),
        _claim(hour, "5", "G5.waits", "124 M: waits of the host for the device a step", "waits", f"<= {WAITS:g}", waits,
               waits is not None and waits <= WAITS, profiled("waits")),
        _claim(hour, "5", "G5.pageable", "124 M: copies from unpinned memory a step", "copies", "0", pageable,
               pageable == 0, profiled("pageable_copies")),
        _claim(hour, "5", "G5.boundary", "124 M: pause of the device between two steps", "s", "<= 0.006", pause,
               pause is not None and pause <= 0.006, profiled("boundary_seconds")),
    ]  # fmt: skip


def _killed(hour: Hour) -> Claim:
    runs = {run.job: run for run in hour.of("3") if run.end}
    differ, repeated = None, 0
    if "killed" in runs and "whole" in runs:
        first, again = ({one["step"]: one for one in runs[name].steps} for name in ("whole", "killed"))
        differ = float(
            sum(first[step].get(name) != again.get(step, {}).get(name)
                for step in first for name in ("loss", "grad_norm"))
        )  # fmt: skip
        repeated = len(runs["killed"].steps) - len(again)
    what = "losses and gradient norms that differ between a run and the same run killed by signal 9"
    # without a repeated step the second process went on from nothing, or from no checkpoint in between
    return _claim(hour, "3", "G3.kill", what, "numbers", "0: the same bits", differ, differ == 0 and repeated > 0,
                  [("steps that were repeated", float(repeated))] if differ is not None else ())  # fmt: skip


def _pages(hour: Hour) -> list[Claim]:
    found: dict[bool, Record] = {one["huge"]: one for run in hour.of("4") for one in run.measured}
    plain = found.get(False, {})

    def kinds(name: str, scale: float = 1.0) -> list[tuple[str, float]]:
        return [("huge pages" if huge else "4 KiB pages", one[name] * scale)
                for huge, one in found.items() if one.get(name) is not None]  # fmt: skip

    per_gib = 1e3 * 1024 / plain["mib"] if plain else 0.0
    register, copy = plain.get("register_seconds"), plain.get("registered_gb_per_second")
    poisoned = plain.get("next_kernel")
    failed = None if poisoned is None else float(bool(poisoned))
    pageable = plain.get("pageable_gb_per_second")
    claims = [
        _claim(hour, "4", "G4.register", "registration of a snapshot's memory, for each GiB", "ms", "<= 500",
               None if register is None else register * per_gib, register is not None and register * per_gib <= 500,
               kinds("register_seconds", per_gib)),
        _claim(hour, "4", "G4.copy", "copies from the device into registered memory", "GB/s",
               f">= {PINNED_GB_PER_SECOND:g}", copy, copy is not None and copy >= PINNED_GB_PER_SECOND,
               kinds("registered_gb_per_second")),
        _claim(hour, "4", "G4.refused", "kernels that fail behind a refused registration", "kernels", "0: known",
               failed, failed == 0),
    ]  # fmt: skip
    if copy is not None and pageable:
        claims[1].peers = {"memory that is not registered": pageable}
        claims[1].ratio = copy / pageable
    return claims


def _recompute(hour: Hour) -> list[Claim]:
    runs = {run.job: run for step in ("6", "8") for run in hour.of(step)}
    full, none = runs.get("h200-recompute"), runs.get("h200")
    tokens = rate(full, SMALL_WARMUP) if full else None
    base = rate(none, WARMUP) if none else None
    share = tokens / base if tokens and base else None
    peaks = [run.end.get("peak_bytes") if run else None for run in (full, none)]
    less = peaks[0] / peaks[1] if peaks[0] and peaks[1] else None
    return [
        _claim(hour, "8", "G8.tokens", "1.3 B with recompute: full, over the same without", "x",
               f">= {RECOMPUTE_SHARE:g}", share, (share or 0) >= RECOMPUTE_SHARE,
               [("tokens/s with recompute", tokens)] if tokens else ()),
        _claim(hour, "8", "G8.peak", "the same: memory at its peak, at twice the rows of a forward", "x", "<= 0.9",
               less, less is not None and less <= 0.9),
    ]  # fmt: skip
