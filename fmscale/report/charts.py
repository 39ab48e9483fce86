"""Line charts and dots as inline SVG: no script, no font, no request, readable on light and dark and on a phone.

Horizontal places are percentages of the drawing's width, so that lines stretch with the page and letters keep their
size.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

HEIGHT, TOP = 192, 14
"""Pixels of a line chart's height, and of the room above it for the uppermost mark."""
CURVE = 1000.0
"""Units of a curve's own grid, in both directions."""
LINE = 14
"""Pixels of a line of text."""

At = Callable[[float, float], tuple[float, float]]
"""A value's place in the drawing: percent from the left, pixels from the top."""


def line_chart(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    label: str,
    marks: Sequence[tuple[float, str]] = (),
    under: tuple[Sequence[float], Sequence[float]] = ((), ()),
    stems: bool = False,
    least_top: float = 0.0,
    from_zero: bool = True,
) -> str:
    """An SVG of ys over xs.

    Args:
        xs: step numbers, ascending.
        ys: values; a value that is not finite is a gap.
        label: name of the y axis, for screen readers too.
        marks: (x, label) of vertical lines, such as at the step of a resume.
        under: (xs, ys) of another line, which is drawn wider and below.
        stems: values above 0 as vertical strokes instead of a line, for rare events.
        least_top: least top of the y axis, so that noise near zero does not fill the chart.
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
        return 100 * across, TOP + (1 - up) * HEIGHT

    bottom = TOP + HEIGHT
    parts = [f'<svg class="chart lines" height="{bottom + 34}" role="img" aria-label="{escape(label)} by step">']
    for y in ticks_y:
        _, row = at(x_low, y)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{row:.1f}" y2="{row:.1f}"/>')
        parts.append(f'<text class="tick" x="-8" y="{row + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x in ticks_x:
        if x_low <= x <= x_high:
            column, _ = at(x, y_low)
            parts.append(
                f'<text class="tick" x="{column:.2f}%" y="{bottom + 16}" text-anchor="middle">{short(x)}</text>'
            )
    parts.append(f'<text class="tick" x="100%" y="{bottom + 31}" text-anchor="end">step</text>')
    if stems:
        parts += _stems(xs, ys, at)
    else:
        below = f'<path class="under" d="{_path(*under, at)}"/>' if under[0] else ""
        parts.append(
            f'<svg y="{TOP}" width="100%" height="{HEIGHT}" viewBox="0 0 {CURVE:g} {CURVE:g}" '
            f'preserveAspectRatio="none">{below}<path class="line" d="{_path(xs, ys, at)}"/></svg>'
        )
    for x, event in marks:
        parts += _mark(event, at(x, y_low)[0], bottom)
    return "".join([*parts, "</svg>"])


def _mark(event: str, column: float, bottom: float) -> list[str]:
    """A dashed line, and its label on the side that has room; each part of the label has its own line."""
    side, offset = ("end", -6) if column > 50 else ("start", 6)
    words = event.replace(": ", ":\n").replace(", ", ",\n").splitlines()
    lines = "".join(
        f'<tspan x="{column:.2f}%" dx="{offset}" dy="{LINE if i else 0}">{escape(word)}</tspan>'
        for i, word in enumerate(words)
    )
    return [
        f'<line class="mark" x1="{column:.2f}%" x2="{column:.2f}%" y1="{TOP}" y2="{bottom}"/>',
        f'<text class="mark" y="{TOP + 10}" text-anchor="{side}">{lines}</text>',
    ]


def dots_by_row(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]], *, unit: str, cap: float) -> str:
    """Rows of dots on one scale: (row's name, [(class of the dot, value)]). Values beyond `cap` stand at the edge, with
    the largest value of the row beside them. A name stands left of its dots, on a narrow page above them.
    """
    largest = max((value for _, dots in rows for _, value in dots), default=1.0)
    scale = ticks(0.0, min(largest, cap))
    grid = [(100 * value / scale[-1], value) for value in scale]
    axis = "".join(
        f'<text class="tick" x="{column:.2f}%" y="12" text-anchor="middle">{short(value)}</text>'
        for column, value in grid
    )
    lines = "".join(
        f'<line class="grid" x1="{column:.2f}%" x2="{column:.2f}%" y1="0" y2="100%"/>' for column, _ in grid
    )
    parts = [
        f'<div class="rows" role="img" aria-label="{escape(unit)}"><div class="row">'
        f'<span></span><svg class="chart dots" height="18">{axis}</svg></div>'
    ]
    for name, dots in rows:
        shown = _dots(name, dots, unit, scale[-1])
        parts.append(
            f'<div class="row"><span class="name">{escape(name)}</span>'
            f'<svg class="chart dots" height="22">{lines}{shown}</svg></div>'
        )
    return "".join([*parts, "</div>"])


def _dots(name: str, dots: Sequence[tuple[str, float]], unit: str, high: float) -> str:
    columns = [100 * min(value / high, 1.0) for _, value in dots]
    parts = [
        f'<line class="span" x1="{min(columns):.2f}%" x2="{max(columns):.2f}%" y1="11" y2="11"/>',
        *(
            f'<circle class="dot {kind}" cx="{column:.2f}%" cy="11" r="4.5">'
            f"<title>{escape(name)}: {kind} {value:.3f} {escape(unit)}</title></circle>"
            for (kind, value), column in zip(dots, columns, strict=True)
        ),
    ]
    if (beyond := max(value for _, value in dots)) > high:
        parts.append(f'<text class="tick" x="100%" dx="8" y="15">{beyond:.1f}</text>')
    return "".join(parts)


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
        words.append(f"{pen}{column / 100 * CURVE:.1f} {(row - TOP) / HEIGHT * CURVE:.1f}")
        pen = "L"
    return "".join(words)


def _stems(xs: Sequence[float], ys: Sequence[float], at: At) -> list[str]:
    parts = []
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y) and y > 0:
            column, row = at(x, y)
            _, base = at(x, 0.0)
            parts.append(f'<line class="stem" x1="{column:.2f}%" x2="{column:.2f}%" y1="{base:.1f}" y2="{row:.1f}"/>')
            parts.append(
                f'<circle class="dot stem" cx="{column:.2f}%" cy="{row:.1f}" r="3">'
                f"<title>step {x:g}: {y:.4g}</title></circle>"
            )
    return parts
