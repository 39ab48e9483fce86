"""A folder of texts and lines that grows and changes, and the documents of a dataset beside it."""

import json
import random
from collections import Counter
from pathlib import Path

from tests.data.ingest.test_additions import held

Held = dict[str, Counter[tuple[str, int, str]]]
"""Source, start and text of the documents of each split."""


class Growing:
    """The folder; every text in it has a number of its own."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self.path, self.chance = path, chance
        self._texts = 0
        (path / "rows").mkdir(parents=True)
        for _ in range(3):
            self.grow()

    def grow(self) -> None:
        """Add some texts, add a file of lines, and make another longer."""
        for _ in range(self.chance.randrange(1, 4)):
            (self.path / f"{self._texts:05d}.txt").write_text(self._text())
        (self.path / f"rows/{self._texts:05d}.jsonl").write_text(self._lines())
        with self.chance.choice(sorted(self.path.glob("rows/*"))).open("a") as file:
            file.write(self._lines())

    def change(self) -> None:
        """Give a text and a file of lines another content."""
        self.chance.choice(sorted(self.path.glob("*.txt"))).write_text(self._text())
        self.chance.choice(sorted(self.path.glob("rows/*"))).write_text(self._lines())

    def documents(self) -> Counter[tuple[str, str]]:
        """Source and text of each document, by plain reads."""
        found = Counter((path.name, path.read_text()) for path in self.path.glob("*.txt"))
        for path in self.path.glob("rows/*"):
            found.update((f"rows/{path.name}", json.loads(line)["text"]) for line in path.read_text().splitlines())
        return found

    def _text(self) -> str:
        self._texts += 1
        return f"text {self._texts} " + "word " * self.chance.randrange(200)

    def _lines(self) -> str:
        return "".join(json.dumps({"text": self._text()}) + "\n" for _ in range(self.chance.randrange(1, 30)))


def differences(store: Path, reference: Path, folder: Growing | None) -> tuple[str, str]:
    """Fault and reason of a dataset that differs from one without kills, or from its folder; else two empty texts."""
    mine, theirs = held(store), held(reference)
    both = mine["train"] + mine["heldout"]
    wanted = folder.documents() if folder else Counter((s, t) for s, _, t in theirs["train"] + theirs["heldout"])
    found: Counter[tuple[str, str]] = Counter()
    for (source, _, text), count in both.items():
        found[source, text] += count
    if found != wanted:
        missing, more = (list(some.items())[:2] for some in (wanted - found, found - wanted))
        return "lost", f"{missing} are missing, {more} too many"
    if mine != theirs:
        moved = [(split, list((theirs[split] - mine[split]).items())[:2]) for split in mine]
        return "mixed", f"other places or splits than without kills: {moved}"
    return "", ""
