"""Recording of a run that is killed and resumes at another size: python docs/recording/record.py

All commands run in a real shell on a pseudo-terminal. Its output becomes `kill-resume.svg` beside this file. Long waits
are shortened, as the drawing notes; its clock shows the real time.
"""

import codecs
import os
import pty
import re
import select
import shutil
import struct
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path

import psutil
from drawing import COLUMNS, ROWS, draw

from fmscale.errors import FmscaleError

ROOT = Path(__file__).parents[2]
READY = "\x1b]133;A\x07"
CONFIG = """\
store: {url: runs/store}
model: {num_layers: 2, dim: 128, num_heads: 4, max_seq_len: 128, tied: true}
data: {sequence_length: 128, sources: [{dataset: code}]}
batch: {global_batch: 16, micro_batch: 8}
train: {run: demo, steps: 120, record_delivery: true}
optimizer: {lr: 0.005}
schedule: {warmup_steps: 10}
checkpoint: {every: 40}
"""


@dataclass
class Session:
    """A shell on its own terminal: its output and captions, each with the seconds since its start."""

    folder: Path
    output: list[tuple[float, str]] = field(default_factory=list)
    captions: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read = 0
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            prompt = "\\[\\e]133;A\\a\\]\\[\\e[32m\\]$\\[\\e[0m\\] "
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            os.chdir(self.folder)
            shell = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
            os.execvpe("bash", shell, {**os.environ, "PATH": path, "PS1": prompt, "TERM": "xterm-256color"})
        ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._began = time.monotonic()
        self.wait_for(READY)

    def now(self) -> float:
        """Seconds since the shell began."""
        return time.monotonic() - self._began

    def caption(self, text: str) -> None:
        """Show `text` below the terminal from now on."""
        self.captions.append((self.now(), text))

    def run(self, command: str, until: str = READY) -> None:
        """Type a command and read until its output has `until`, by default until its end."""
        os.write(self._terminal, command.encode() + b"\n")
        self.wait_for(until)

    def wait_for(self, text: str, seconds: float = 180.0) -> None:
        """Read until `text` appears, after the text of the previous call."""
        deadline = time.monotonic() + seconds
        while (found := self.text.find(text, self._read)) < 0:
            if not select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise FmscaleError(
                    f"the terminal did not show {text!r} within {seconds:.0f} s",
                    found=self.text[-500:],
                    remedy="Run the command by hand in a terminal and look at its error.",
                )
            self.output.append((self.now(), self._decoder.decode(os.read(self._terminal, 65_536))))
        self._read = found + len(text)

    @property
    def text(self) -> str:
        """All output so far."""
        return "".join(text for _, text in self.output)

    def kill_programs(self) -> int:
        """Send SIGKILL to all processes of the shell; their number."""
        programs = psutil.Process(self.pid).children(recursive=True)
        for program in programs:
            program.kill()
        return len(programs)

    def close(self) -> None:
        """End the shell and its processes."""
        self.kill_programs()
        psutil.Process(self.pid).kill()
        os.waitpid(self.pid, 0)
        os.close(self._terminal)


def record(folder: Path) -> Session:
    """Ingest, train on two ranks, kill all, resume with one rank, audit."""
    (folder / "my.yaml").write_text(CONFIG)
    (folder / "fmscale").symlink_to(ROOT / "fmscale")
    session = Session(folder)
    try:
        session.caption("Text becomes a dataset of tokens in a store.")
        session.run("fmscale ingest fmscale --store runs/store --dataset code --tokenizer bpe:2048")
        session.caption("Two ranks train at ZeRO stage 2 and save every 40 steps.")
        session.run("fmscale launch my.yaml --procs-per-node 2", until="step 60/120")
        killed = session.kill_programs()
        session.caption(f"kill -9 in the midst of training: the launcher, both ranks, {killed} processes in all.")
        session.wait_for(READY)
        session.caption("The same command with one rank: it goes on from the checkpoint.")
        session.run("fmscale launch my.yaml --procs-per-node 1", until="step 60/120")
        session.wait_for("ETA")
        two, one = re.findall(r"step 60/120  loss (\S+)", session.text)
        session.caption(f"Step 60 once more. Its loss on two ranks: {two}; on one rank: {one}.")
        session.wait_for(READY)
        session.caption("The record of what the model received: nothing missing, nothing changed.")
        session.run("fmscale dataset audit --store runs/store --run demo runs/demo/delivery/*.arrow")
        if not re.search(r"resumed  step 40 .*step 120, complete.*problems .* none", session.text, re.S):
            raise FmscaleError(
                "the run did not go on to its end with all samples",
                found=session.text[-2000:],
                remedy="Nothing was drawn. Look at what the terminal showed.",
            )
    finally:
        session.close()
    return session


def main() -> None:
    """Record, and write the drawing."""
    folder = Path(tempfile.mkdtemp())
    try:
        session = record(folder)
    finally:
        shutil.rmtree(folder)
    Path(__file__).with_name("kill-resume.svg").write_text(draw(session.output, session.captions))


if __name__ == "__main__":
    main()
