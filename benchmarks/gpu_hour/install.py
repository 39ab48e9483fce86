"""An environment for the jobs: the copied wheels, then this Python's packages, and this checkout.

python -m benchmarks.gpu_hour.install FOLDER

It needs neither a network nor torch. The wheels go into a virtual environment of their own, because the machine's
packages must not change. An environment made from a virtual environment would not see that environment's packages, so a
.pth names them.
"""

import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.gpu_hour.source import WHEELS
from benchmarks.harness import ROOT

NEEDED = ("fmscale.kernels", "fmscale.launch", "deepspeed", "obstore", "zstandard", "crc32c", "pytest")


def missing(python: str) -> list[str]:
    """Modules of the steps that an interpreter does not find."""
    find = (
        "import importlib.util as u, sys\n"
        "def there(name):\n"
        "    try: return u.find_spec(name) is not None\n"
        "    except ImportError: return False\n"
        "print(*(name for name in sys.argv[1:] if not there(name)))"
    )
    done = subprocess.run(
        [python, "-c", find, *NEEDED], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()


def python_of(folder: Path) -> str:
    """The interpreter of an environment."""
    return str(folder / "bin" / "python")


def main() -> None:
    """Make the environment in the named folder. Exits with a cause and a remedy."""
    folder = Path(sys.argv[1])
    wheels = sorted(WHEELS.glob("*.whl"))
    if not wheels:
        sys.exit(
            f"packages are missing here and there are no wheels of them: found nothing in {WHEELS}. Run "
            "benchmarks/gpu_wheels.sh where there is a network, and carry that folder too."
        )
    parents = [one for one in (*site.getsitepackages(), sysconfig.get_path("purelib")) if Path(one).is_dir()]
    venv.create(folder, system_site_packages=True, with_pip=False)
    inside = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))
    lines = [f"import site; site.addsitedir({one!r})" for one in dict.fromkeys(parents)]
    (inside / "machine.pth").write_text("\n".join([*lines, str(ROOT)]) + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python_of(folder),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*pip, "--no-compile", *map(str, wheels)], check=True)
    # On all cores, where pip uses one core; otherwise every process of the first steps would compile for itself.
    subprocess.run([python_of(folder), "-m", "compileall", "-q", "-j", "0", str(inside)], check=False)
    left = missing(python_of(folder))
    if left:
        sys.exit(
            f"still missing after the wheels were installed: {', '.join(left)}. Add them to "
            "benchmarks/gpu_hour/wheels.py and run benchmarks/gpu_wheels.sh again."
        )


if __name__ == "__main__":
    main()
