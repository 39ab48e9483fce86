"""Line charts as inline SVG: no script, no font, no request, readable on light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 34

At = Callable[[float, float], tuple[float, float]]
"""A value's place in the drawing."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A place on the x axis worth a line: where the run was resumed."""

    x: float
    """Where."""
    label: str
    """What happened there."""


def line_chart(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    label: str,
    marks: Sequence[Mark] = (),
    under: tuple[Sequence[float], Sequence[float]] = ((), ()),
    stems: bool = False,
    least_top: float = 0.0,
    from_zero: bool = True,
) -> str:
    """An SVG of ys over xs.

    Args:
        xs: step numbers, ascending.
        ys: values; what is not finite is a gap.
        label: of the y axis, for screen readers too.
        marks: vertical lines.
        under: (xs, ys) of another line, which is drawn wider and below.
        stems: values above 0 as vertical strokes instead of a line, for what is rare.
        least_top: the y axis reaches at least here, so that noise near zero does not fill the chart.
        from_zero: the y axis begins at 0.
    """
    finite = [y for y in ys if math.isfinite(y)]
    low = 0.0 if from_zero or not finite else min(finite)
    ticks_y = ticks(low, max([*finite, least_top, low + 1e-9]))
    ticks_x = ticks(min(xs, default=0), max(xs, default=1), count=8)
    x_low, x_high = min(xs, default=0), max(max(xs, default=1), min(xs, default=0) + 1)
    y_low, y_high = ticks_y[0], ticks_y[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)} by step">'
    ]
    for y in ticks_y:
        _, row = at(x_low, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{row:.1f}" y2="{row:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{row + 4:.1f}" text-anchor="end">{short(y)}</text>'
        )
    for x in ticks_x:
        if x_low <= x <= x_high:
            column, row = at(x, y_low)
            parts.append(
                f'<text class="tick" x="{column:.1f}" y="{row + 16:.1f}" text-anchor="middle">{short(x)}</text>'
            )
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">step</text>')
    if under[0]:
        parts.append(f'<path class="under" d="{_path(*under, at)}"/>')
    if stems:
        parts += _stems(xs, ys, at)
    else:
        parts.append(f'<path class="line" d="{_path(xs, ys, at)}"/>')
    for mark in marks:
        column, _ = at(mark.x, y_low)
        side, offset = ("end", -6) if column > WIDTH * 0.6 else ("start", 6)
        parts.append(
            f'<line class="mark" x1="{column:.1f}" x2="{column:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        parts.append(
            f'<text class="mark" x="{column + offset:.1f}" y="{TOP + 10}" text-anchor="{side}">'
            f"{escape(mark.label)}</text>"
        )
    return "".join([*parts, "</svg>"])


def dots_by_row(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, unit: str, cap: float) -> str:
    """Dots for several values a row, on one scale: (row's name, [(class of the dot, value)]). What is beyond `cap`
    stands at the edge, with the largest value of its row beside it.
    """
    step, left, top, width = 22, 260, 24, 1070
    height = top + step * len(rows) + 8
    largest = max((value for _, dots in rows for _, value in dots), default=1.0)
    high = ticks(0.0, min(largest, cap))[-1]

    def across(value: float) -> float:
        return left + min(value / high, 1.0) * (width - left - 50)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(unit)}">']
    for value in ticks(0.0, high):
        column = across(value)
        parts.append(f'<line class="grid" x1="{column:.1f}" x2="{column:.1f}" y1="{top - 6}" y2="{height}"/>')
        parts.append(f'<text class="tick" x="{column:.1f}" y="12" text-anchor="middle">{short(value)}</text>')
    for i, (name, dots) in enumerate(rows):
        row = top + step * i + step / 2
        values = [across(value) for _, value in dots]
        parts.append(
            f'<text class="name" x="{left - 10}" y="{row + 4}" text-anchor="end">{escape(name)}</text>'
        )
        parts.append(
            f'<line class="span" x1="{min(values):.1f}" x2="{max(values):.1f}" y1="{row}" y2="{row}"/>'
        )
        for (kind, value), column in zip(dots, values, strict=True):
            parts.append(
                f'<circle class="dot {kind}" cx="{column:.1f}" cy="{row}" r="4.5">'
                f"<title>{escape(name)}: {kind} {value:.3f} {escape(unit)}</title></circle>"
            )
        beyond = max(value for _, value in dots)
        if beyond > high:
            parts.append(f'<text class="tick" x="{width - 42}" y="{row + 4}">{beyond:.1f}</text>')
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that span [low, high]."""
    rough = max((high - low) / count, 1e-12)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def short(value: float) -> str:
    """12000 -> 12k; 0.25 -> 0.25."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"


def _path(xs: Sequence[float], ys: Sequence[float], at: At) -> str:
    words, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            pen = "M"
            continue
        column, row = at(x, y)
        words.append(f"{pen}{column:.1f} {row:.1f}")
        pen = "L"
    return "".join(words)


def _stems(xs: Sequence[float], ys: Sequence[float], at: At) -> list[str]:
    parts = []
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y) and y > 0:
            column, row = at(x, y)
            _, base = at(x, 0.0)
            parts.append(
                f'<line class="stem" x1="{column:.1f}" x2="{column:.1f}" y1="{base:.1f}" y2="{row:.1f}"/>'
            )
            parts.append(
                f'<circle class="dot stem" cx="{column:.1f}" cy="{row:.1f}" r="3">'
                f"<title>step {x:g}: {y:.4g}</title></circle>"
            )
    return parts
