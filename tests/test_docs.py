"""The names in the tables of docs/api.md exist."""

import pkgutil
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
SECTIONS = dict(re.findall(r"^## `(fmscale[.\w]*)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NAMES = {
    package: re.findall(r"`([\w.]+)", " ".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))
    for package, text in SECTIONS.items()
}


@pytest.mark.parametrize("package", [package for package, names in NAMES.items() if names])
def test_the_names_in_the_tables_exist(package: str) -> None:
    for name in NAMES[package]:
        pkgutil.resolve_name(f"{package}.{name}")


def test_every_section_of_names_has_a_table() -> None:
    prose = {package for package, names in NAMES.items() if len(names) < 3}
    assert prose == {"fmscale.data.ingest", "fmscale.errors"}
    assert len(NAMES) >= 10


def test_every_test_that_the_page_on_security_names_exists() -> None:
    tests = Path(__file__).parent
    page = (tests.parent / "docs" / "security.md").read_text()
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 25
    for path, name in named:
        assert f"def {name}" in (tests / path).read_text(), (path, name)
