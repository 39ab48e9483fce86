"""The example of docs/api.md runs as it stands."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
SECTIONS = dict(re.findall(r"^## `(fmscale[.\w]*)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS["fmscale.models"], re.DOTALL)
    found: dict[str, object] = {}
    exec(compile(code, "docs/api.md", "exec"), found)
    assert found["loss"].count == 64  # type: ignore[attr-defined]
    assert all(one.stop == "length" and len(one.tokens) == 8 for one in found["said"])  # type: ignore[attr-defined]
