"""Charts as PNG files, drawn by a headless Chromium: the page's own drawings, and no package that draws them again."""

import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from fmscale.errors import ConfigError
from fmscale.report.page import document, figures

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 960
"""Pixels of a page with one chart; a PNG has twice as many, for print and dense screens."""
ALONE = "<style>main { padding: 0; } body { background: var(--card); } figure { border: 0; }</style>"
"""Style of a page with one chart: nothing but the chart."""
SECONDS = 60.0
"""Longest time of one drawing."""
FRAME = 100
"""Pixels of a window that its page does not get: Chromium 120 and later count a frame of 87, which nobody sees."""


def browser() -> str:
    """Path of a Chromium. Raises ConfigError where there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise ConfigError(
            "PNGs of the charts are drawn by a headless Chromium, and there is none on PATH",
            found=os.environ.get("PATH"),
            remedy="Install one (`apt-get install chromium`), or leave out --png: report.html has the same charts.",
        )
    return found


def draw(charts: Iterable[tuple[str, str, str, str]], folder: Path) -> list[Path]:
    """Write KEY.png for each (key, title, note, html); returns the paths. Raises ConfigError without a Chromium or if
    it fails, OSError if the folder cannot be written.
    """
    program, drawn = browser(), []
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fmscale-png-") as scratch:
        page, profile = Path(scratch, "chart.html"), Path(scratch, "profile")
        for key, title, note, html in charts:
            page.write_text(document(title, [ALONE, figures([(title, note, html)])]), encoding="utf-8")
            path = folder / f"{key}.png"
            path.unlink(missing_ok=True)
            # Without scripts nobody measures the page: the caption and a legend of two lines take 110 pixels.
            height = 110 + sum(map(int, re.findall(r'<svg class="chart[^>]*? height="(\d+)"', html)))
            _shoot(program, page, path, profile, height + 30 * html.count("<p class='name'>"))
            drawn.append(path)
    return drawn


def _shoot(program: str, page: Path, path: Path, profile: Path, height: int) -> None:
    words = [program, "--headless", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=2"]
    # The super-user has no sandbox of Chromium's; the page is ours and has no script.
    words += ["--no-sandbox"] if os.geteuid() == 0 else []
    words += [f"--window-size={WIDTH},{height + FRAME}", f"--user-data-dir={profile}", f"--screenshot={path.resolve()}"]
    try:
        result = subprocess.run([*words, page.as_uri()], capture_output=True, timeout=SECONDS, check=False)
        said = result.stderr.decode(errors="replace")[-500:]
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if not path.is_file():
        raise ConfigError(
            "Chromium has drawn nothing", found=said, remedy=f"See if `{program} --headless --screenshot` works here."
        )
    path.write_bytes(_first_rows(path.read_bytes(), 2 * height))


def _first_rows(png: bytes, height: int) -> bytes:
    """The upper rows of a picture: each row is coded by itself and the row above, so the others can be left out."""
    head, pixels, at = png[16:29], b"", 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] == b"IDAT":
            pixels += png[at + 8 : at + 8 + size]
        at += size + 12
    rows = zlib.decompress(pixels)
    kept = rows[: len(rows) // int.from_bytes(head[4:8], "big") * height]
    chunks = (
        (b"IHDR", head[:4] + height.to_bytes(4, "big") + head[8:]),
        (b"IDAT", zlib.compress(kept)),
        (b"IEND", b""),
    )
    coded = (
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )
    return png[:8] + b"".join(coded)
