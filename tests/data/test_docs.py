"""The example of docs/api.md runs as it stands."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
SECTIONS = dict(re.findall(r"^## `(fmscale[.\w]*)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_the_example_of_the_loader_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS["fmscale.data"], re.DOTALL)
    found: dict[str, object] = {}
    exec(compile(code, "docs/api.md", "exec"), found)
    assert found["batch"]["tokens"].shape == found["following"]["tokens"].shape == (4, 65)  # type: ignore[index]
    assert not (found["batch"]["tokens"] == found["following"]["tokens"]).all()  # type: ignore[index]
    found["again"].loader.close()  # type: ignore[attr-defined]
