"""Programs that a model wrote, each run in a process of its own: without network, with limits, in an empty folder."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from fmscale.errors import ConfigError

APART = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child")
"""Command that gives a process no network, and ends all that it started with it."""
MEMORY = 2**30
"""Bytes of address space of a program."""
FILE_BYTES = 2**20
"""Largest file that a program writes."""
OUTPUT = 400
"""Last characters of its errors that are kept."""

LIMITS = (
    "import resource as r, runpy, sys\n"
    "cpu, memory, file = map(int, sys.argv[1:4])\n"
    "for limit, most in ((r.RLIMIT_CPU, cpu), (r.RLIMIT_AS, memory), (r.RLIMIT_FSIZE, file), (r.RLIMIT_CORE, 0),\n"
    "                    (r.RLIMIT_NOFILE, 64), (r.RLIMIT_NPROC, 64)):\n"
    "    r.setrlimit(limit, (most, most))\n"
    "sys.argv = ['program.py']\n"
    "runpy.run_path('program.py', run_name='__main__')\n"
)


def require_apart() -> None:
    """Raise ConfigError where processes cannot be kept from the network."""
    if shutil.which("unshare") is None:
        found = "no command `unshare`"
    else:
        tried = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
        if not tried.returncode:
            return
        found = tried.stderr.strip() or f"unshare ended with {tried.returncode}"
    raise ConfigError(
        "Code of a model is run without network, which this machine does not allow",
        found=found,
        remedy="Run it in a container or on a machine with user namespaces.",
    )


def run_program_text(code: str, *, seconds: int) -> str | None:
    """Run a Python program; None if it ends with status 0 within its limits, otherwise the reason.

    It has neither network nor environment, and of files it sees what the user sees: `require_apart` and a container
    are the caller's to choose.
    """
    with tempfile.TemporaryDirectory(prefix="fmscale-code-") as folder:
        Path(folder, "program.py").write_text(code, encoding="utf-8", errors="surrogatepass")
        limits = [str(seconds), str(MEMORY), str(FILE_BYTES)]
        errors = Path(folder, "errors")
        with errors.open("wb") as sink:
            process = subprocess.Popen(
                [*APART, sys.executable, "-I", "-c", LIMITS, *limits],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=sink, start_new_session=True,
                env={"PATH": os.defpath, "HOME": folder},
            )  # fmt: skip
            try:
                status = process.wait(timeout=3 * seconds + 5)
            except subprocess.TimeoutExpired:
                status = -signal.SIGXCPU
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        said = errors.read_bytes()[-OUTPUT:].decode(errors="replace").strip()
    reason = said.split("\n")[-1]
    killed = (-signal.SIGXCPU, 128 + signal.SIGXCPU, -signal.SIGKILL, 128 + signal.SIGKILL)
    # util-linux before 2.40 cannot pass SIGKILL on, and says so instead
    if status in killed or reason.startswith("unshare: sigprocmask"):
        return f"not done within {seconds} CPU seconds"
    return None if status == 0 else reason or f"status {status}"
