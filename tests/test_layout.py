"""The layout of the code: file sizes, direction of imports, content of the wheel, and no pickle.

import-linter (in `make lint`) checks the layers inside `fmscale/`; this file checks the folders that are mapped under
`fmscale.` on installation, and all rules beside imports.
"""

import ast
import graphlib
import re
import statistics
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = ("fmscale", "kernels", "launch")
LONGEST = 400
MEDIAN = 160
ABOVE_KERNELS = {"cli", "train", "infer", "objectives", "models", "data", "checkpoint", "kernels"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, at any place in it; relative imports are not used."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_is_long_and_most_are_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in sources(*CODE, "benchmarks", "tests")}
    assert {path.relative_to(ROOT): count for path, count in lines.items() if count > LONGEST} == {}
    library = [lines[path] for path in sources(*CODE) if lines[path] > 5]
    assert statistics.median(library) <= MEDIAN


def test_kernels_run_where_only_torch_and_triton_are_installed() -> None:
    allowed = sys.stdlib_module_names | {"torch", "triton"}
    strangers = {
        (path.name, name)
        for path in sources("kernels")
        for name in imported(path)
        if name.split(".")[0] not in allowed and not name.startswith(("fmscale.kernels", "fmscale.errors"))
    }
    assert strangers == set()


def test_nothing_below_the_kernels_or_beside_them_imports_them() -> None:
    wrong = [
        (path.relative_to(ROOT), name)
        for path in sources("fmscale")
        for name in imported(path)
        if name.startswith("fmscale.kernels") and path.relative_to(ROOT).parts[1] not in ABOVE_KERNELS
    ]
    assert wrong == []


def test_launchers_know_nothing_of_what_a_rank_does_and_only_the_command_line_knows_them() -> None:
    below = ("fmscale.launch", "fmscale.runtime", "fmscale.config", "fmscale.errors")
    seen = {name for path in sources("launch") for name in imported(path) if name.startswith("fmscale.")}
    assert [name for name in sorted(seen) if not name.startswith(below)] == []
    users = {
        path.relative_to(ROOT).parts[1]
        for path in sources("fmscale")
        for name in imported(path)
        if name.startswith("fmscale.launch")
    }
    assert users == {"cli"}


def test_every_folder_of_code_is_a_package_and_so_gets_into_the_wheel() -> None:
    bare = {path.parent for path in sources(*CODE) if not (path.parent / "__init__.py").is_file()}
    assert bare == set()


def test_every_dependency_has_the_version_that_the_tests_run_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    wanted = {re.match(r"[\w-]+", one)[0].lower() for one in named} - {"fmscale"}  # type: ignore[index]
    held = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.M)
    assert wanted - {name.lower() for name in held} == set()


def test_nothing_that_is_read_can_execute_code() -> None:
    found = {
        (path.relative_to(ROOT), name)
        for path in sources(*CODE)
        for name in imported(path)
        if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
    }
    loads = {
        path.relative_to(ROOT)
        for path in sources(*CODE)
        if re.search(r"\b(torch|np|numpy)\.load\((?!.*weights_only=True)|allow_pickle=True", path.read_text())
    }
    assert (found, loads) == (set(), set())


def module(path: Path) -> str:
    """Name by which a file of ours is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((*(("fmscale",) if parts[0] != "fmscale" else ()), *parts)).removesuffix(".__init__")


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, at its top or in a function; imports for types alone do not count."""
    files = {module(path): path for path in sources(*CODE)}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body.clear()
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names = {(node.module or "", alias.name) for node in nodes for alias in node.names}
        found[name] = {f"{a}.{b}" if f"{a}.{b}" in files else a for a, b in names} & files.keys()
    return found


def test_no_imports_in_circles() -> None:
    imports = graph()
    order = graphlib.TopologicalSorter(imports)
    assert list(order.static_order()), "raises CycleError with the circle"
    rooms: dict[str, set[str]] = {}
    for name, targets in imports.items():
        for target in targets:
            for depth in (3, 4):
                a, b = (".".join(one.split(".")[:depth]) for one in (name, target))
                if (
                    a != b
                    and b.count(".") == a.count(".") == depth - 1
                    and a.rpartition(".")[0] == b.rpartition(".")[0]
                ):
                    rooms.setdefault(a, set()).add(b)
    assert list(graphlib.TopologicalSorter(rooms).static_order())


def test_no_two_public_types_share_a_name() -> None:
    names = [
        node.name
        for path in sources(*CODE)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_no_function_has_the_name_of_a_room() -> None:
    rooms = {path.parent.name for path in sources(*CODE)}
    named = {
        f"{module(path)}.{node.name}"
        for path in sources(*CODE)
        if path.relative_to(ROOT).parts[:2] != ("fmscale", "cli")  # a verb has the name of its room
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name in rooms
    }
    # Users call `fmscale.ingest(...)`; `read` of a format is an operation on its file.
    assert {name for name in named if ".ingest.formats." not in name} - {"fmscale.data.ingest.ingest"} == set()


def test_every_room_lists_its_files_in_reading_order() -> None:
    missing = {
        f"{folder.relative_to(ROOT)}: {name}"
        for folder in {path.parent for path in sources(*CODE)}
        for name in {
            path.name if path.suffix else path.name + "/"
            for path in folder.iterdir()
            if path.suffix == ".py" or (path / "__init__.py").is_file()
        }
        if name not in ("__init__.py", "__main__.py")
        and not re.search(rf"\b{name}(?!\w)", ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "")
    }
    assert sorted(missing) == []


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    asked = re.compile(r"(What|Whether|How|Where|Which|Who|When)\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(*CODE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if asked.match(node.value.value)
    ]
    assert wrong == []


def test_no_loose_ends() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    assert [path for path in sources(*CODE) if marks.search(path.read_text())] == []
