"""The recording: a real terminal's output becomes lines, and lines become a drawing for pages without scripts."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "recording"
SVG = "{http://www.w3.org/2000/svg}"


def module(name: str) -> ModuleType:
    """A file of docs/recording, which is no package, under its own name."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


drawing = module("drawing")
record = module("record")


def text_of(screen: object) -> list[str]:
    return ["".join(character for character, _ in line) for line in screen.lines]  # type: ignore[attr-defined]


def checked(svg: str) -> ElementTree.Element:
    """The drawing's root: valid XML without scripts or fetched parts, of the right length."""
    root = ElementTree.fromstring(svg)
    allowed = {"svg", "title", "style", "rect", "circle", "g", "text", "tspan"}
    assert {element.tag for element in root.iter()} == {SVG + name for name in allowed}
    attributes = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in attributes if name.startswith("on") or "href" in name]
    assert "url(" not in svg
    assert "@import" not in svg
    assert len(svg.encode()) <= 100_000
    assert float(re.findall(r"animation:([\d.]+)s", svg)[0]) <= drawing.SECONDS
    moments = [float(moment) for moment in re.findall(r"([\d.]+)%\{", svg)]
    assert max(moments) < 100
    return root


def test_lines_are_written_over_erased_wrapped_and_styled() -> None:
    screen = drawing.Screen()
    screen.feed("phase …\r       \rdone\x1b[2K\r\x1b[1;32mok\x1b")
    screen.feed("[0m <&\r\n" + "x" * 93 + "\r\n\x1b]133;A\x07\x1b[?25l$ ")
    assert text_of(screen) == ["ok <&", "x" * 92, "x", "$ "]
    assert drawing.spans(screen.lines[0]) == '<tspan class="b c32">ok</tspan> &lt;&amp;'
    with pytest.raises(drawing.FmscaleError, match="control sequence"):
        screen.feed("\x1b[5A")


def test_the_longest_waits_are_cut_until_all_fits() -> None:
    moments = [1.0, 2.0, 32.0, 62.0]
    shown, longest = drawing.shown_at(moments, [2.0], 20.0)
    room = 20.0 - drawing.LAST - drawing.PAUSE
    assert longest == pytest.approx((room - 2) / 2)
    times = [shown(moment) for moment in moments]
    expected = [1.0, 2.0, 2.0 + drawing.PAUSE + longest, room + drawing.PAUSE]
    assert times == pytest.approx(expected)
    assert shown(31.9) == pytest.approx(times[2])
    assert drawing.shown_at([1.0], [], 20.0)[0](1.0) == 1.0


def test_each_version_of_a_line_is_seen_in_its_own_time_only() -> None:
    output = [(0.5, "$ run\r\n"), (1.0, "10 %"), (2.0, "\r90 %"), (3.0, "\r\n" * 30 + "end")]
    svg = drawing.draw(output, [(0.6, "begin"), (2.5, "<ends>")])
    root = checked(svg)
    rows = {"".join(text.itertext()): text for text in root.iter(f"{SVG}text")}
    length = 3.0 + 2 * drawing.PAUSE + drawing.LAST
    assert rows["10 %"].get("class") == "o"
    assert rows["90 %"].get("class") == "v"
    rule = re.search(rf"@keyframes {rows['10 %'].attrib['style'].split(':')[1]}(.*)", svg)
    assert rule is not None
    begin, end = (100 * (moment + drawing.PAUSE) / length for moment in (1.0, 2.0))
    assert rule[1] == f"{{0%{{opacity:0}}{begin:.2f}%{{opacity:1}}{end:.2f}%{{opacity:0}}}}"
    assert {"begin", "<ends>", "end", "0:03"} <= rows.keys()
    assert f"translateY(-{drawing.LINE * 8}px)" in svg


def test_a_shell_on_a_terminal_is_recorded_and_what_it_started_is_killed(tmp_path: Path) -> None:
    session = record.Session(tmp_path)
    try:
        session.run("stty size; test -t 1 && pwd", until=str(tmp_path))
        session.wait_for(record.READY)
        session.run("sh -c 'echo be''gun; sleep 600'", until="begun")
        assert session.kill_programs() >= 1
        session.wait_for("Killed")
        with pytest.raises(record.FmscaleError, match="did not show 'never'"):
            session.wait_for("never", seconds=0.01)
    finally:
        session.close()
    assert f"{drawing.ROWS} {drawing.COLUMNS}" in session.text
    checked(drawing.draw(session.output, [(0.0, "begins")]))


def test_the_recording_in_the_docs_shows_the_kill_the_resume_and_the_proof() -> None:
    svg = (FOLDER / "kill-resume.svg").read_text()
    shown = "\n".join("".join(text.itertext()) for text in checked(svg).iter(f"{SVG}text"))
    story = (
        "ranks   2,",
        "checkpoint  step 40 ",
        "Killed",
        "ranks   1,",
        "resumed  step 40 ",
        "step 120, complete",
    )
    places = [shown.index(part) for part in story]
    assert places == sorted(places)
    assert re.search(r"^missing_samples +0$", shown, re.M)
    assert re.search(r"^problems +none$", shown, re.M)
    assert not re.search(r"/(home|root|tmp|work|usr)/", shown)
