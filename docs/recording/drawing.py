"""Animated SVG, without scripts, of a terminal's output."""

import re
from collections.abc import Callable
from html import escape

from fmscale.errors import FmscaleError

COLUMNS, ROWS = 92, 24
SECONDS = 20.0
"""Length of the drawing, after which it repeats."""
PAUSE, LAST = 1.1, 2.5
"""Seconds for which the drawing stands still at each caption, and at the end."""
SHORTEST = 0.1
"""Seconds within which two changes of a line become a single change."""
LINE, CHARACTER = 18, 7.83
"""Height and width of a character at 13 px, in the usual monospaced fonts."""
TOKEN = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|([^\x1b])", re.S)
STYLE = """\
text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:#d6deeb;white-space:pre}
.v,.o{animation:%.2fs step-end infinite}.o{opacity:0}.b{font-weight:700}.d,.small{fill:#7f8ea3}.caption{fill:#ffcb6b}
.c31,.c91{fill:#ff6b81}.c32,.c92{fill:#7bd88f}.c33,.c93{fill:#ffcb6b}.c35,.c95{fill:#c792ea}.c36{fill:#6cd3e8}
.c90{fill:#4b586b}
@media(prefers-reduced-motion:reduce){*{animation:none!important}}
"""

Cell = tuple[str, str]
"""A character and its CSS classes."""


class Screen:
    """All lines that a terminal has shown; understands the output of fmscale's verbs."""

    def __init__(self) -> None:
        self.lines: list[list[Cell]] = [[]]
        self._row = self._column = 0
        self._style: dict[str, str] = {}
        self._rest = ""

    def feed(self, text: str) -> None:
        """Print `text`. Raises FmscaleError for an unknown control sequence."""
        text, at = self._rest + text, 0
        while match := TOKEN.match(text, at):
            at = match.end()
            if match[2]:
                self._control(match[1], match[2])
            elif match[3]:
                self._print(match[3])
        self._rest = text[at:]

    def _print(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n" or (character >= " " and self._column == COLUMNS):
            self._row += 1
            self._column = self._column if character == "\n" else 0
            self.lines += [[] for _ in range(self._row + 1 - len(self.lines))]
        if character >= " ":
            line = self.lines[self._row]
            line += [(" ", "")] * (self._column + 1 - len(line))
            line[self._column] = character, " ".join(self._style.values())
            self._column += 1

    def _control(self, numbers: str, kind: str) -> None:
        if kind == "m":
            for number in (numbers or "0").split(";"):
                if number == "0":
                    self._style = {}
                elif number in "12":
                    self._style["weight"] = "b" if number == "1" else "d"
                else:
                    self._style["colour"] = f"c{number}"
        elif kind == "K":
            del self.lines[self._row][0 if numbers == "2" else self._column :]
        elif not (kind in "hl" and numbers[:1] == "?"):
            raise FmscaleError(
                "a control sequence that the recording does not know",
                found=f"ESC [ {numbers} {kind}",
                remedy="Add it to Screen in docs/recording/record.py.",
            )


def shown_at(moments: list[float], captions: list[float], seconds: float) -> tuple[Callable[[float], float], float]:
    """The function from real time to the drawing's, and the longest wait it keeps: the longest that fits `seconds`."""
    gaps = [after - before for before, after in zip([0.0, *moments], moments, strict=False)]
    room = seconds - LAST - PAUSE * len(captions)
    low, high = 0.0, max(gaps)
    if sum(gaps) > room:
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(min(gap, middle) for gap in gaps) <= room else (low, middle)

    def shown(moment: float) -> float:
        before = [0.0, *(one for one in moments if one <= moment)]
        kept = sum(min(gap, high) for gap in gaps[: len(before) - 1])
        return kept + min(moment - before[-1], high) + PAUSE * sum(one < moment for one in captions)

    return shown, high


def spans(line: list[Cell]) -> str:
    """A line as SVG: one tspan for each stretch of one style."""
    found = ""
    while line:
        style = line[0][1]
        end = next((at for at, cell in enumerate(line) if cell[1] != style), len(line))
        text = escape("".join(character for character, _ in line[:end]), quote=False)
        found, line = found + (f'<tspan class="{style}">{text}</tspan>' if style else text), line[end:]
    return found


def draw(output: list[tuple[float, str]], captions: list[tuple[float, str]]) -> str:
    """The animated SVG: each version of a line, each caption and each second of the clock is visible for its time."""
    screen, versions, scrolls = Screen(), dict[int, list[tuple[float, str]]](), [(0.0, 0)]
    for moment, text in output:
        screen.feed(text)
        for row, line in enumerate(screen.lines):
            drawn, old = spans(line).rstrip(), versions.setdefault(row, [])
            if drawn != (old[-1][1] if old else ""):
                began = old.pop()[0] if old and moment - old[-1][0] < SHORTEST else moment
                old.append((began, drawn))
        if len(screen.lines) - ROWS > scrolls[-1][1]:
            scrolls.append((moment, len(screen.lines) - ROWS))
    shown, wait = shown_at(sorted({m for m, _ in [*output, *captions]}), [m for m, _ in captions], SECONDS)
    length = shown(output[-1][0]) + LAST
    rules, elements = [STYLE % length], []

    def percent(moment: float) -> str:
        return f"{100 * shown(moment) / length:.2f}%"

    def place(options: str, told: list[tuple[float, str]]) -> list[str]:
        made = []
        for at, (moment, text) in enumerate(told):
            until = told[at + 1][0] if at + 1 < len(told) else None
            if not text or (until and percent(until) == percent(moment)):
                continue
            end = f"{percent(until)}{{opacity:0}}" if until else ""
            rules.append(f"@keyframes k{len(rules)}{{0%{{opacity:0}}{percent(moment)}{{opacity:1}}{end}}}")
            name = f'class="{"o" if until else "v"}" style="animation-name:k{len(rules) - 1}"'
            made.append(f"<text {name} {options}>{text}</text>")
        return made

    for row, told in versions.items():
        elements += place(f'y="{LINE * row + 14}"', told)
    below, width = LINE * ROWS + 62, round(COLUMNS * CHARACTER) + 40
    around = place(f'x="20" y="{below}"', [(m, f'<tspan class="caption">{escape(t)}</tspan>') for m, t in captions])
    seconds = range(int(output[-1][0]) + 1)
    around += place(f'x="{width - 64}" y="24"', [(float(s), f"{s // 60}:{s % 60:02}") for s in seconds])
    steps = "".join(f"{percent(m)}{{transform:translateY(-{LINE * rows}px)}}" for m, rows in scrolls)
    rules.append(f"@keyframes scroll{{{steps}}}")
    newline, dots = (
        "\n",
        "".join(f'<circle cx="{24 + 18 * n}" cy="20" r="6" fill="#3b4a61"/>' for n in range(3)),
    )
    note = f"Waits are cut to {wait:.1f} s; the clock shows the real time."
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {below + 40}" width="{width}" role="img">
<title>A run on two ranks is killed and goes on with one</title>
<style>{newline.join(rules)}</style>
<rect width="100%" height="100%" rx="10" fill="#151d29"/>{dots}
<svg x="20" y="40" width="{width - 40}" height="{LINE * ROWS}">
<g class="v" style="animation-name:scroll;transform:translateY(-{LINE * scrolls[-1][1]}px)">
{newline.join(elements)}
</g></svg>
{newline.join(around)}
<text x="20" y="{below + 22}" class="small">{note}</text>
</svg>
"""
