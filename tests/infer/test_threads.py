"""CPU threads of generation and evaluation follow the work, and are a setting."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.infer import Document, evaluate, generate
from fmscale.infer.threads import threads_for
from fmscale.models import Decoder
from tests.infer.trained_run import save_run, store_texts
from tests.models.models import small, tokens


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads of each forward, on a process that may use 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    seen: list[int] = []
    right = Decoder.forward

    def forward(*args: object, **more: object) -> object:
        seen.append(torch.get_num_threads())
        return right(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "forward", forward)
    return seen


def test_a_token_of_a_small_model_takes_one_thread_and_a_long_text_more(used: list[int]) -> None:
    model, before = small(dim=256, max_seq_len=1024), torch.get_num_threads()
    sizes = [p.numel() for p in model.parameters() if p.ndim == 2]
    long = int(3.5 * 8e6 * len(sizes) / 2 / sum(sizes))  # three and a half times the work of a thread
    assert threads_for(model, long) == 3
    generate(model, [tokens(long, seed=1).tolist()], max_tokens=3)
    assert used == [3, 1, 1], "the prompt is read at once, then a token at a time"
    used.clear()
    evaluate(model, [Document(name="d", text=b"d", tokens=np.asarray(tokens(long + 1, seed=2)), bos=False)])
    assert used == [3]
    used.clear()
    generate(model, [[1, 2]], max_tokens=2, threads=5)
    assert used == [5, 5]
    assert torch.get_num_threads() == before


def test_the_threads_are_an_option(used: list[int], tmp_path: Path) -> None:
    url = store_texts(tmp_path)
    save_run(url, "run", (5,))
    for words in (["generate", f"{url}#run", "a", "--max-tokens", "2"], ["evaluate", f"{url}#run", "--documents", "1"]):
        used.clear()
        assert CliRunner().invoke(build_app(), [*words, "--threads", "7"]).exit_code == 0
        assert set(used) == {7}


FAULTS = """
import resource, torch
from fmscale.infer.threads import cpu_threads
model, faults = torch.nn.Linear(1, 1), []
for _ in range(3):
    with cpu_threads(model, 1, 1):
        layer = [torch.ones(2**20) for _ in range(10)]
        layer.clear()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[2] - faults[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_of_a_forward_is_there_for_the_next_one() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    # Without it all 20,480; where the heap lies decides if six of the tensors are taken once more.
    assert int(done.stdout) < 10 * 1024, "10 tensors of 1,024 pages each, in 2 forwards"
