"""Charts as inline SVG: no script, no font, no request, readable on light and dark and on a phone.

Horizontal places are percentages of the drawing's width, so that lines stretch with the page and letters keep their
size.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

HEIGHT, TOP = 192, 14
"""Pixels of a line chart's height, and of the room above it for the uppermost mark."""
CURVE = 1000.0
"""Units of a curve's own grid, in both directions."""
LINE = 14
"""Pixels of a line of text."""
MOST_POINTS = 900
"""Points of a line that are drawn: more than a chart has pixels on most screens."""
MOST_CELLS = 64
"""Rows, and columns, of a heat map that are drawn."""

At = Callable[[float, float], tuple[float, float]]
"""A value's place in the drawing: percent from the left, pixels from the top."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Values over step numbers."""

    xs: Sequence[float]
    """Step numbers, ascending."""
    ys: Sequence[float]
    """Values; a value that is not finite is a gap."""
    look: str = "line"
    """Class of the drawing: line, under (wide, for a line below another), or `line s0` to `line s5`; `dashed`."""


def line_chart(
    lines: Sequence[Line],
    *,
    label: str,
    marks: Sequence[tuple[float, str]] = (),
    stems: bool = False,
    least_top: float = 0.0,
    from_zero: bool = True,
) -> str:
    """An SVG of lines over the same steps, the last line on top.

    Args:
        lines: the values; MOST_POINTS of a line are drawn, its extremes among them.
        label: name of the y axis, for screen readers too.
        marks: (x, label) of vertical lines, such as at the step of a resume.
        stems: values above 0 as vertical strokes instead of a line, for rare events.
        least_top: least top of the y axis, so that noise near zero does not fill the chart.
        from_zero: the y axis begins at 0.
    """
    finite = [y for line in lines for y in line.ys if math.isfinite(y)]
    steps = [x for line in lines for x in (*line.xs[:1], *line.xs[-1:])] or [0]
    low = 0.0 if from_zero or not finite else min(finite)
    ticks_y = ticks(low, max([*finite, least_top, low + 1e-9]))
    x_low, x_high = min(steps), max(max(steps), min(steps) + 1)
    ticks_x = ticks(x_low, max(steps), count=8)
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
    parts += _steps([(at(x, y_low)[0], x) for x in ticks_x if x_low <= x <= x_high], bottom)
    if stems:
        parts += [part for line in lines for part in _stems(line, at)]
    else:
        paths = "".join(f'<path class="{line.look}" d="{_path(*thinned(line.xs, line.ys), at)}"/>' for line in lines)
        parts.append(
            f'<svg y="{TOP}" width="100%" height="{HEIGHT}" viewBox="0 0 {CURVE:g} {CURVE:g}" '
            f'preserveAspectRatio="none">{paths}</svg>'
        )
    for x, event in marks:
        parts += _mark(event, at(x, y_low)[0], bottom)
    return "".join([*parts, "</svg>"])


def _steps(columns: Iterable[tuple[float, float]], bottom: float) -> list[str]:
    """The axis of steps below a drawing: (percent from the left, step)."""
    return [
        *(
            f'<text class="tick" x="{column:.2f}%" y="{bottom + 16}" text-anchor="middle">{short(step)}</text>'
            for column, step in columns
        ),
        f'<text class="tick" x="100%" y="{bottom + 31}" text-anchor="end">step</text>',
    ]


def thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS points of a line: of each stretch of steps its least and largest value, and a gap."""
    if len(xs) <= MOST_POINTS:
        return list(xs), list(ys)
    kept: list[int] = []
    count = MOST_POINTS // 3
    for part in range(count):
        places = range(part * len(xs) // count, (part + 1) * len(xs) // count)
        finite = [i for i in places if math.isfinite(ys[i])]
        gap = [i for i in places if not math.isfinite(ys[i])][:1]
        kept += sorted({*gap, *((min(finite, key=ys.__getitem__), max(finite, key=ys.__getitem__)) if finite else ())})
    return [xs[i] for i in kept], [ys[i] for i in kept]


def heat_map(rows: Sequence[Sequence[float]], steps: Sequence[float], *, label: str) -> str:
    """A row for each rank and a column for each of `steps`, the stronger the larger its value (0 or more; NaN: none).

    At most MOST_CELLS rows and columns are drawn: a cell then is the largest value of several.
    """
    cells = [_grouped(row) for row in zip(*(_grouped(column) for column in zip(*rows, strict=True)), strict=True)]
    count, shown = len(cells), _grouped(steps)
    most = max((value for row in cells for value in row if math.isfinite(value)), default=0.0) or 1.0
    height = count * max(4, min(22, HEIGHT // count))
    paths = []
    for y, row in enumerate(cells):
        x = 0
        for depth, group in groupby(f"{value / most:.2f}" if math.isfinite(value) else "" for value in row):
            width = len(list(group))
            if depth:
                paths.append(f'<path class="cell" fill-opacity="{depth}" d="M{x} {y}h{width}v1h-{width}z"/>')
            x += width
    names = "".join(
        f'<text class="tick" x="-8" y="{TOP + (y + 0.5) * height / count + 4:.1f}" text-anchor="end">{rank}</text>'
        for y, rank in {0: 0, count - 1: len(rows) - 1}.items()
    )
    marked = sorted({i * (len(shown) - 1) // 4 for i in range(5)})
    axis = _steps([(100 * (i + 0.5) / len(shown), shown[i]) for i in marked], TOP + height)
    words = f"{escape(label)} by rank and step"
    return (
        f'<svg class="chart lines" height="{TOP + height + 34}" role="img" aria-label="{words}">'
        f'<rect class="cells" y="{TOP}" width="100%" height="{height}"/>{names}'
        f'<svg y="{TOP}" width="100%" height="{height}" viewBox="0 0 {len(shown)} {count}" preserveAspectRatio="none" '
        f'shape-rendering="crispEdges">{"".join(paths)}</svg>{"".join(axis)}</svg>'
    )


def _grouped(values: Sequence[float]) -> list[float]:
    """At most MOST_CELLS values: the largest of each group that is finite."""
    count = min(len(values), MOST_CELLS)
    groups = (values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count))
    return [max((value for value in group if math.isfinite(value)), default=math.nan) for group in groups]


def stacked_bar(parts: Sequence[tuple[str, str, float]], *, label: str) -> str:
    """A bar of parts side by side: (class of the part, name, value); together they fill the width."""
    total = sum(value for _, _, value in parts) or 1.0
    inner, at = [], 0.0
    for kind, name, value in parts:
        share = 100 * value / total
        inner.append(
            f'<rect class="part {kind}" x="{at:.2f}%" width="{share:.2f}%" height="26">'
            f"<title>{escape(name)}: {share:.1f} %</title></rect>"
        )
        at += share
    return f'<svg class="chart bar" height="26" role="img" aria-label="{escape(label)}">{"".join(inner)}</svg>'


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
        point = f"{column / 100 * CURVE:.1f} {(row - TOP) / HEIGHT * CURVE:.1f}"
        # A point between two gaps is a line of no length, which a round end makes visible.
        words.append(f"M{point}L{point}" if pen == "M" else f"L{point}")
        pen = "L"
    return "".join(words)


def _stems(line: Line, at: At) -> list[str]:
    parts, look = [], line.look.removeprefix("line")
    for x, y in zip(line.xs, line.ys, strict=True):
        if math.isfinite(y) and y > 0:
            column, row = at(x, y)
            _, base = at(x, 0.0)
            parts.append(
                f'<line class="stem {look}" x1="{column:.2f}%" x2="{column:.2f}%" y1="{base:.1f}" y2="{row:.1f}"/>'
            )
            parts.append(
                f'<circle class="dot stem {look}" cx="{column:.2f}%" cy="{row:.1f}" r="3">'
                f"<title>step {x:g}: {y:.4g}</title></circle>"
            )
    return parts
