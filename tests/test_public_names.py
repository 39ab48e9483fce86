"""`import fmscale`: a short list of names, loaded at first use, typed for a user's own project."""

import ast
import inspect
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import fmscale

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, fmscale; dir(fmscale); print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert "fmscale" in loaded
    bare = subprocess.check_output([sys.executable, "-c", code.replace(", fmscale; dir(fmscale)", "")], text=True)
    assert loaded - set(bare.split()) - sys.stdlib_module_names == {"fmscale"}


def test_every_name_is_there_and_in_the_first_table_of_the_docs() -> None:
    first = PAGE[PAGE.index("## `fmscale`") : PAGE.index("## `fmscale.config`")]
    for name in fmscale.__all__:
        assert getattr(fmscale, name).__name__ == name
        assert f"| `{name}" in first or f", `{name}" in first
    assert set(fmscale.__all__) <= set(dir(fmscale))
    assert len(fmscale.__all__) <= 20
    assert fmscale.__version__ == version("fmscale")
    with pytest.raises(AttributeError, match="no attribute 'open_stroe'"):
        _ = fmscale.open_stroe  # type: ignore[attr-defined]


def test_type_checkers_are_told_the_homes_that_python_is_told() -> None:
    block = next(
        node
        for node in ast.parse(inspect.getsource(fmscale)).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    told = {
        str(node.module).removeprefix("fmscale."): tuple(alias.name for alias in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert told == fmscale._HOMES
    assert sorted(name for names in told.values() for name in names) == fmscale.__all__


def test_no_function_bears_the_name_of_a_room() -> None:
    rooms = {path.name for path in (ROOT / "fmscale").iterdir() if path.is_dir()} | {"kernels", "launch"}
    assert rooms & set(fmscale.__all__) == set()


@pytest.mark.slow
def test_a_users_project_sees_the_types_of_the_installed_package(tmp_path: Path) -> None:
    """Installed as by pip into its own folder; `py.typed` makes mypy read it."""
    install = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build"]
    install += ["--build-base", str(tmp_path / "build"), "--build-lib", str(tmp_path / "site")]
    subprocess.run(install, cwd=ROOT, check=True, capture_output=True)
    shutil.copy(ROOT / "tests" / "typed_user" / "main.py", tmp_path)
    (tmp_path / "wrong.py").write_text('import fmscale\n\nfmscale.open_stroe("x")\nfmscale.load_config(3)\n')
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={ROOT}/.mypy_cache/typed_user", "main.py", "wrong.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        text=True,
        capture_output=True,
    )
    assert checked.stdout.splitlines() == [
        'wrong.py:3: error: Module has no attribute "open_stroe"; maybe "open_store"?  [attr-defined]',
        'wrong.py:4: error: Argument 1 to "load_config" has incompatible type "int"; expected "str | Path"  [arg-type]',
        "Found 2 errors in 1 file (checked 2 source files)",
    ]
