"""The page of a save's road names the files that a save enters, in the trainer and in the persist process."""

import re
from pathlib import Path

from tests.checkpoint.states import Fleet, take_lease
from tests.helpers.tracing import ROOT, entered

PAGE = ROOT / "docs" / "a-saves-road.md"
ROOMS = ("fmscale/checkpoint/", "fmscale/data/", "fmscale/store/")
LONGEST_ROAD = 12


def test_the_page_names_the_files_of_a_save(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    lease = take_lease(url)

    def save() -> None:
        with Fleet(url, lease=lease) as fleet:
            fleet.saved(1)

    files = {file for file in entered(save) if file.startswith(ROOMS)}
    text = PAGE.read_text()
    road = re.findall(r"^\d+\. `(\S+)`", text, re.M)
    leaves = re.findall(r"^- `(\S+)`", text, re.M)
    assert len(road) <= LONGEST_ROAD
    assert sorted(road + leaves) == sorted(files)
