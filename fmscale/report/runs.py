"""The report of runs: one page with their curves in the same charts, where their time went, and what happened.

Values come from `fmscale.train.account`, which reads the records.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from statistics import median
from typing import Any, NamedTuple

from fmscale.report import page as parts
from fmscale.report.charts import Line, heat_map, line_chart, stacked_bar
from fmscale.train.account import PARTS, Account, Told, number, told_events

MOST_RUNS = 6
"""Runs that have a colour of their own."""
MOST_EVENTS = 100
"""Last events of a run that are listed."""
MOST_MARKS = 5
"""Resumes that are marked in the charts; more would hide the lines."""
RECENT_STEPS = 100
"""Last steps whose median is the speed of a run."""
DEFINITIONS = {
    "MFU": "FLOPs a token x tokens/s a device / the device's peak. FLOPs a token are 3 x those of a forward (2 x for "
    "frozen matrices), with attention counted causal and recompute not counted; the peak is that of dense bf16 in the "
    "device's data sheet. A device that has no known peak gets no percentage.",
    "speed": "all that a step needs is in its time: data, evaluations and saves too. The slowest rank counts.",
    "data stall": "seconds of a step in which the rank that waited longest waited for data.",
    "checkpoint blocking": "seconds that training waited for a save, counted in the next step.",
    "checkpoint lag": "seconds from the begin of a save until it is durable; training goes on meanwhile.",
    "goodput": "the first part of the time: steps that count, without their waits, as a share of all time on record.",
}


class Chart(NamedTuple):
    """A chart of the page, which is also drawn alone."""

    key: str
    title: str
    note: str
    html: str


def render(accounts: Sequence[Account]) -> str:
    """The page of one run, or of several side by side."""
    alone = accounts[0] if len(accounts) == 1 else None
    names = " and ".join(account.name for account in accounts)
    lead = "; ".join(_said(account) for account in accounts) + "."
    notes = "".join(
        f"<p class='note'>{escape(account.name)}: {escape(note)}</p>" for account in accounts for note in account.notes
    )
    figures = [(account.name, _figures(account)) for account in accounts]
    if alone:
        summary = parts.tiles([(label, value, note) for label, (value, note) in figures[0][1].items()])
    else:
        labels = dict.fromkeys(label for _, found in figures for label in found)
        rows = [(label, [_cell(*found.get(label, ("–", ""))) for _, found in figures]) for label in labels]
        summary = parts.section("Side by side", parts.table([name for name, _ in figures], rows))
    drawn = charts(accounts)
    curves = [(chart.title, chart.note, chart.html) for chart in drawn if chart.key != "goodput"]
    body = [
        parts.header("fmscale report", names, lead),
        f"<section>{notes}</section>" if notes else "",
        summary,
        parts.section("Curves", ("" if alone else _legend(accounts)) + parts.figures(curves)),
        parts.section("Where the time went", drawn[-1].html + _split(accounts), note=drawn[-1].note),
        *(parts.section(f"Events of {account.name}", _events(account)) for account in accounts),
        parts.section("Definitions", parts.facts(DEFINITIONS | {f"MFU of {a.name}": _mfu(a) for a in accounts})),
    ]
    return parts.document(f"fmscale report: {names}", body)


def charts(accounts: Sequence[Account]) -> list[Chart]:
    """The charts that the records allow, goodput last."""
    alone = len(accounts) == 1
    marks = _marks(accounts[0]) if alone else []
    units = {account.unit for account in accounts}
    unit = units.pop() if len(units) == 1 else "units"

    def curve(key: str, title: str, note: str, *, scale: float = 1.0, least: float = 0.0, **options: Any) -> Chart:
        """A metric of the steps of all runs; values up to `least` count as 0."""
        lines = []
        for i, account in enumerate(accounts):
            name = f"{account.unit}_per_second" if key == "throughput" else key
            values = [scale * number(record, name) for record in account.steps]
            lines.append(_line(i, account, [0.0 if value <= scale * least else value for value in values]))
        stems = bool(least)
        return Chart(key, title, note, line_chart(lines, label=title, marks=marks, stems=stems, **options))

    out = [_loss(accounts, marks), curve("throughput", "Throughput", f"{unit} a second, all ranks")]
    if any("mfu" in record for account in accounts for record in account.steps):
        out.append(curve("mfu", "MFU", "percent of the device's peak, as defined below", scale=100.0))
    out += [
        curve("data_stall", "Data stall", "milliseconds of a step that wait for data", scale=1e3, least_top=10.0),
        # The fence costs microseconds at every step: with `least` only saves are drawn.
        curve("ckpt_blocking", "Checkpoint blocking", "milliseconds of a step", scale=1e3, least=1e-4, least_top=10.0),
    ]
    lags = [[e for e in a.events("checkpoint") if e.get("state") == "acknowledged"] for a in accounts]
    if any(lags):
        lines = [
            Line(xs=[number(e, "step") for e in saves], ys=[number(e, "durable_seconds") for e in saves], look=f"s{i}")
            for i, saves in enumerate(lags)
        ]
        svg = line_chart(lines, label="lag", marks=marks, stems=True)
        out.append(Chart("ckpt_lag", "Checkpoint lag", "seconds until a save is durable", svg))
    for i, account in enumerate(accounts):
        whose, suffix = ("", "") if alone else (f" of {account.name}", f"_{i + 1}")
        out += [
            Chart(f"ranks_{key}{suffix}", f"{title}{whose}", note, svg)
            for key, title in (("seconds", "Step time by rank"), ("data_stall", "Data stall by rank"))
            for note, svg in _ranks(account, key, title)
        ]
    bars = "".join(_bar(account, named=not alone) for account in accounts)
    legend = parts.legend([(f"p{i}", name) for i, name in enumerate(PARTS)])
    return [*out, Chart("goodput", "Goodput", "Seconds of the run by their use.", legend + bars)]


def _line(i: int, account: Account, values: Sequence[float]) -> Line:
    return Line(xs=[record["step"] for record in account.steps], ys=values, look=f"line s{i}")


def _loss(accounts: Sequence[Account], marks: Sequence[tuple[float, str]]) -> Chart:
    """Losses of the steps, and held-out losses dashed: in the colour of the run, or of its own if a run is alone."""
    lines, sets = [], []
    for i, account in enumerate(accounts):
        lines.append(_line(i, account, [number(record, "loss") for record in account.steps]))
        evaluations = {event["step"]: event for event in account.events("evaluation") if "step" in event}
        found = dict.fromkeys(name for event in evaluations.values() for name in event if name.startswith("heldout/"))
        for j, name in enumerate(found, start=1):
            colour = i if len(accounts) > 1 else 1 + (j - 1) % (MOST_RUNS - 1)
            ys = [number(evaluations[step], name) for step in sorted(evaluations)]
            lines.append(Line(xs=sorted(evaluations), ys=ys, look=f"line dashed s{colour}"))
            sets.append((f"s{colour}", f"{name} (dashed)"))
    legend = parts.legend([("s0", "each step"), *sets]) if len(accounts) == 1 and sets else ""
    note = f"nats, each step{'; held-out losses are dashed' if sets else ''}"
    return Chart("loss", "Loss", note, legend + line_chart(lines, label="loss", marks=marks, from_zero=False))


def _ranks(account: Account, key: str, title: str) -> list[tuple[str, str]]:
    """(note, heat map) of a value by rank; [] without such records."""
    records = account.events("ranks")
    by_step = {event["step"]: event[key] for event in records if event.get(key) and isinstance(event[key], list)}
    if not by_step:
        return []
    steps, size = sorted(by_step), max(map(len, by_step.values()))
    columns = [[*map(float, by_step[step]), *[math.nan] * (size - len(by_step[step]))] for step in steps]
    most, rank, step = max(
        (value, rank, step)
        for step, column in zip(steps, columns, strict=True)
        for rank, value in enumerate(column)
        if not math.isnan(value)
    )
    note = f"mean of a step; the strongest is {most:.3g} s, on rank {rank} at step {step}"
    return [(note, heat_map(list(zip(*columns, strict=True)), steps, label=title))]


def _marks(account: Account) -> list[tuple[float, str]]:
    resumed = account.events("resumed")
    marks = []
    for event in resumed if len(resumed) <= MOST_MARKS else ():
        then, now = event.get("world_size_then"), event.get("world_size")
        marks.append((number(event, "step"), "resumed" + (f": {then} → {now} ranks" if then != now else "")))
    return marks


def _figures(account: Account) -> dict[str, tuple[str, str]]:
    """Single numbers of a run: label -> (value, note)."""
    steps, unit = account.steps, account.unit
    seconds = sum(number(record, "seconds") for record in steps)
    out = {}
    if steps:
        out["loss"] = f"{number(steps[-1], 'loss'):.4g}", f"of step {steps[-1]['step']:,}"
    evaluations = account.events("evaluation")
    for name in [name for name in (evaluations[-1] if evaluations else ()) if name.startswith("heldout/")][:2]:
        out[name] = f"{number(evaluations[-1], name):.4g}", f"after step {evaluations[-1].get('step')}"
    if steps:
        rate = median(number(record, f"{unit}_per_second") for record in steps[-RECENT_STEPS:])
        out[f"{unit}/s"] = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", f"median of the last {RECENT_STEPS} steps"
        known = [number(record, "mfu") for record in steps[-RECENT_STEPS:] if "mfu" in record]
        out["MFU"] = (f"{median(known):.1%}", "defined below") if known else ("–", "not known: see the definitions")
        stall = sum(number(record, "data_stall") for record in steps) / seconds if seconds else 0.0
        out["data stall"] = f"{stall:.2%}", "of the time of all steps"
    out["goodput"] = f"{account.goodput:.1%}", "of all time on record"
    repeated = sum(attempt.repeated for attempt in account.attempts)
    out["steps repeated"] = f"{repeated:,}", f"starts: {len(account.attempts)}"
    return out


def _said(account: Account) -> str:
    last = f"{len(account.steps):,} steps, the last {account.steps[-1]['step']:,}" if account.steps else "no step yet"
    endings = ("complete", "stopped", "ended", "failed", "lost")
    ends = [told.event for told in told_events(account) if told.event in endings]
    how = ends[-1] if ends and account.attempts[-1].of("reads", "failed") else "without an end on record"
    whose = account.failure or account.attempts[-1].of("failed")
    return f"{account.name}: {last}, {'failed' if whose else how}"


def _legend(accounts: Sequence[Account]) -> str:
    return parts.legend([(f"s{i}", account.name) for i, account in enumerate(accounts)])


def _cell(value: str, note: str) -> str:
    return f"{escape(value)} <span class='note'>{escape(note)}</span>"


def _bar(account: Account, *, named: bool) -> str:
    bar = stacked_bar(
        [(f"p{i}", name, account.seconds[name]) for i, name in enumerate(PARTS)], label=f"time of {account.name}"
    )
    return (f"<p class='name'>{escape(account.name)}</p>" if named else "") + bar


def _split(accounts: Sequence[Account]) -> str:
    """Seconds and shares of each part, and the part's definition."""
    totals = [sum(account.seconds.values()) or 1.0 for account in accounts]
    rows = [
        (
            name,
            [
                *(
                    _cell(f"{account.seconds[name]:,.1f} s", f"{account.seconds[name] / total:.1%}")
                    for account, total in zip(accounts, totals, strict=True)
                ),
                escape(meaning),
            ],
        )
        for name, meaning in PARTS.items()
    ]
    return parts.table([*(account.name for account in accounts), "meaning"], rows)


def _events(account: Account) -> str:
    rows = [
        (told.event, [_when(told), "" if told.step is None else str(told.step), _detail(told)])
        for told in told_events(account)
    ]
    left = f"<p class='note'>{len(rows) - MOST_EVENTS:,} events before these are left out.</p>"
    table = parts.table(["time (UTC)", "step", "details"], rows[-MOST_EVENTS:])
    return (left if len(rows) > MOST_EVENTS else "") + table


def _when(told: Told) -> str:
    try:
        return datetime.fromtimestamp(told.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "–"


def _detail(told: Told) -> str:
    detail = escape(told.detail)
    return f"<span class='trouble'>{detail or 'trouble'}</span>" if told.trouble else detail


def _mfu(account: Account) -> str:
    started = account.events("started")
    if not started:
        return "its records are of an earlier version, without device and FLOPs"
    flops, peak, device = (started[-1].get(name) for name in ("flops_per_token", "peak_flops", "device"))
    if account.unit != "tokens":
        return f"not known, as the run counts {account.unit}"
    if not flops:
        return "not known, as the FLOPs of this model are not"
    counted = f"{flops:.4g} FLOPs a token"
    return f"{counted}; the peak of {device} is " + (f"{peak / 1e12:,.0f} TFLOP/s" if peak else "not known")
