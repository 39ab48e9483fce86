"""The roofline plot, as SVG written by hand: a machine with only torch and triton can draw it."""

import html
import math
from collections.abc import Sequence

from benchmarks.kernels.ceilings import Ceilings
from benchmarks.kernels.contest import Run

WIDTH, HEIGHT, MARGIN = 900, 560, 70
OURS, PEER, ROOF = "#c1272d", "#5b7fa6", "#333333"


def roofline(runs: Sequence[Run], ceilings: Ceilings, title: str) -> str:
    """Operations per second over operations per byte, log-log; fmscale's kernels filled, the best peers hollow."""
    points = [
        (run, run.intensity, _operations(run, "ours"), max(_operations(run, name) for name in run.rates))
        for run in runs
        if "ours" in run.rates
    ]
    low_x = min([0.1, *(x for _, x, _, _ in points)]) / 2
    high_x = max([1e4, *(x for _, x, _, _ in points)]) * 2
    low_y, high_y = ceilings.copy * low_x / 4, ceilings.matmul * 2

    def across(x: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * math.log(x / low_x) / math.log(high_x / low_x)

    def down(y: float) -> float:
        clipped = max(y, low_y)
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * math.log(clipped / low_y) / math.log(high_y / low_y)

    ridge = ceilings.matmul / ceilings.copy
    corners = [(low_x, low_x * ceilings.copy), (ridge, ceilings.matmul), (high_x, ceilings.matmul)]
    roof = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in corners)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="24" font-size="15">{html.escape(title)}</text>',
        f'<polyline points="{roof}" fill="none" stroke="{ROOF}" stroke-width="2"/>',
        f'<text x="{across(low_x) + 8:.1f}" y="{down(low_x * ceilings.copy) - 14:.1f}">'
        f"copy {ceilings.copy:.2f} TB/s</text>",
        f'<text x="{across(high_x) - 130:.1f}" y="{down(ceilings.matmul) - 6:.1f}">'
        f"matmul {ceilings.matmul:.0f} TFLOP/s</text>",
        f'<text x="{WIDTH / 2 - 60}" y="{HEIGHT - 18}">operations per byte</text>',
        f'<text x="16" y="{HEIGHT / 2}" transform="rotate(-90 16 {HEIGHT / 2})">TFLOP/s</text>',
    ]
    for exponent in range(math.ceil(math.log10(low_x)), math.floor(math.log10(high_x)) + 1):
        parts.append(f'<text x="{across(10.0**exponent):.1f}" y="{HEIGHT - MARGIN + 16}">1e{exponent}</text>')
    for exponent in range(math.ceil(math.log10(low_y)), math.floor(math.log10(high_y)) + 1):
        parts.append(f'<text x="{MARGIN - 34}" y="{down(10.0**exponent):.1f}">1e{exponent}</text>')
    for run, x, ours, best in points:
        label = html.escape(f"{run.id} {run.variant}".strip())
        parts.append(f"<g><title>{label}: {ours:.3g} TFLOP/s</title>")
        if best > ours:
            parts.append(_circle(across(x), down(best), "none", PEER))
        parts.append(_circle(across(x), down(ours), OURS, OURS) + "</g>")
        parts.append(f'<text x="{across(x) + 7:.1f}" y="{down(ours) + 4:.1f}" font-size="8">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _operations(run: Run, name: str) -> float:
    return run.flops / run.times[name]["median"] / 1e12


def _circle(x: float, y: float, fill: str, stroke: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>'
