"""Every error that a user can act on says how: no error of these packages is raised without a remedy (P9)."""

import ast
from pathlib import Path

import pytest

from fmscale import errors

PACKAGES = ("store", "data", "config", "runtime", "cli")
ROOT = Path(errors.__file__).parent
ACTIONABLE = {name for name, kind in vars(errors).items() if isinstance(kind, type)} - {"FmscaleError"}


def without_remedy(source: str) -> list[int]:
    """Lines that make an error without a remedy."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    made = [call for call in calls if getattr(call.func, "id", "") in ACTIONABLE]
    return [call.lineno for call in made if not {"remedy", None} & {word.arg for word in call.keywords}]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_error_has_a_remedy(package: str):
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in (ROOT / package).rglob("*.py")
        for line in without_remedy(path.read_text())
    }
    assert not found


def test_an_error_without_one_is_seen():
    assert without_remedy('raise ConfigError("x", found=1)\nraise DataError("y", remedy="z")') == [1]
