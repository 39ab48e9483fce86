"""Single jobs of a persist process, without a trainer; and a further step in its work."""

import time
from functools import partial
from typing import Any

import pytest

from fmscale.checkpoint import saver
from fmscale.checkpoint.format.layout import checked, plan_layout
from fmscale.checkpoint.format.names import checkpoint_folder
from fmscale.checkpoint.persist import worker
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings
from fmscale.checkpoint.persist.rank_part import store_seal, write_files
from fmscale.checkpoint.persist.step import PersistStep
from fmscale.checkpoint.persist.worker import Worker
from fmscale.checkpoint.snapshot.copy_progress import EVERYTHING
from fmscale.checkpoint.snapshot.memory import SharedMemory
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.store.backends.protocol import Backend
from tests.checkpoint.states import RUN, Tensors, pieces_at

STATE: Tensors = {(f"w{i}", "weight"): ("float32", (5000,)) for i in range(3)}


def one_save(url: str, lease: int, step: int, memory: SharedMemory, attempt: int, sealed: bool) -> SaveJob:
    """The job of a single rank's save of `STATE`, whose snapshot is put into `memory`."""
    pieces = pieces_at(STATE, [(key, 0, 5000) for key in STATE], step)
    layout = plan_layout([checked(piece) for piece in pieces])
    for place, number in enumerate(layout.order):
        data = pieces[number].tensor.numpy().tobytes()
        memory.view[layout.offsets[place] :][: len(data)] = data
    return SaveJob(
        number=step,
        step=step,
        folder=checkpoint_folder(RUN, step, lease),
        complete=False,
        meta={"step": step},
        rank_meta=None,
        layout=layout,
        attempt=attempt,
        sealed=sealed,
    )


def settings(url: str, lease: int) -> SaveSettings:
    return SaveSettings(
        url=url,
        deadline=10.0,
        run=RUN,
        rank=0,
        world_size=1,
        lease=lease,
        config=CheckpointConfig(keep_last=1, grace_seconds=0.0, retries=1, seal_seconds=10.0),
    )


def work(url: str, lease: int, job: SaveJob, memory: SharedMemory, backend: Backend) -> list[dict[str, Any]]:
    """Do a job in its own process, until its end or death; its messages."""
    said: list[dict[str, Any]] = []
    setattr(worker, "open_store", lambda *_, **__: backend)  # noqa: B010
    alone = Worker(settings(url, lease), said.append)
    alone.submit(job, memory)
    alone.copied(job.number, EVERYTHING)
    while not getattr(backend, "crashed", False) and not any(one["event"] == "done" for one in said):
        time.sleep(0.001)
    alone.close()
    return said


def put_between(monkeypatch: pytest.MonkeyPatch, step: PersistStep) -> None:
    """Let savers of stores in folders work in threads, with a step between the files and the seal."""
    monkeypatch.setattr(saver, "ProcessWriter", partial(Worker, steps=(write_files, step, store_seal)))
