"""A config that trains a decoder of 100,000 parameters for a few steps, and starts of it by command lines."""

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.helpers.listeners import Place, listeners

BESIDE = Path(sys.executable).parent
FMSCALE = str(BESIDE / "fmscale")
LAUNCH = Path(__file__).parents[2] / "launch"
SECONDS = 240.0
"""A start takes 8 to 15 s on two free cores, and several times that on busy cores."""

CONFIG = """
store: {{url: {folder}/store}}
data: {{sequence_length: 64, sources: [{{dataset: text}}]}}
batch: {{global_batch: 8, micro_batch: 2}}
model: {{num_layers: 2, dim: 64, num_heads: 4, num_kv_heads: 2, max_seq_len: 64}}
train:
  {{folder: {folder}/runs, steps: 4, precision: fp32, device: cpu, record_delivery: true, log_every: 1}}
schedule: {{warmup_steps: 1}}
"""


def write_raw(folder: Path) -> None:
    """Forty documents of made-up words, 38 kB."""
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefgh", k=chance.randint(2, 6))) for _ in range(200)]
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(" ".join(chance.choices(words, k=200)))


def prepare(folder: Path) -> None:
    """FOLDER/run.yaml, and the dataset that it reads in FOLDER/store."""
    write_raw(folder / "raw")
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    words = ["ingest", str(folder / "raw"), "--store", str(folder / "store"), "--dataset", "text"]
    started([FMSCALE, *words, "--tokenizer", "bytes", "--workers", "1"], folder)


def copied(source: Path, place: Path) -> Path:
    """A copy of a prepared folder with its dataset and runs, whose config names the copy."""
    shutil.copytree(source, place)
    config = place / "run.yaml"
    config.write_text(config.read_text().replace(str(source), str(place)))
    return place


def environment(**more: str) -> dict[str, str]:
    """This process's environment, without a launcher's variables, with fmscale on the PATH unless PATH is given."""
    families = ("SLURM_", "OMPI_", "PMI_", "MASTER_", "OMP_NUM")
    own = {name: value for name, value in os.environ.items() if not name.startswith(families)}
    return {**own, "PATH": f"{BESIDE}{os.pathsep}{os.environ['PATH']}", **more}


def started(command: list[str], folder: Path, **more: str) -> str:
    """Run a command to its end in `folder`; its output. Fails with it if the status is not 0."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout[-8000:]}"
    return done.stdout


def watched(command: list[str], folder: Path, **more: str) -> dict[Place, set[str]]:
    """Run a command to its end like `started`; the places where it and its descendants have listened at any time."""
    found: dict[Place, set[str]] = {}
    with (folder / "watched.log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(**more), stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + SECONDS
            while process.poll() is None:
                for place, commands in listeners(process.pid).items():
                    found.setdefault(place, set()).update(commands)
                assert time.monotonic() < deadline
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
        finally:
            process.kill()
        log.seek(0)
        assert process.returncode == 0, f"{command} ended with {process.returncode}\n{log.read()[-8000:]}"
    return found
