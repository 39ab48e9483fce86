"""Systems that save a rank's state, fmscale and its peers, each behind the same three calls.

`save(step)` returns when training may go on, `fence()` when the state may change, `durable(step)` says when (on
`time.perf_counter`) the save was complete and synced, or None while it is not. Every save has a folder of its own.
`safe` gives a peer fmscale's further guarantees: digests of written bytes, synced folders, and one commit mark after
all ranks are done.
"""

import json
import os
import shutil
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import crc32c
import torch
from torch import Tensor, distributed

State = dict[str, Tensor]


class System:
    """A peer; subclasses begin a save and wait for it."""

    def __init__(self, folder: Path, state: State, rank: int, size: int, *, safe: bool) -> None:
        self.folder, self.state, self.rank, self.size, self.safe = folder, state, rank, size, safe
        self.done: dict[int, float] = {}
        self._threads: list[threading.Thread] = []
        self._store = distributed.distributed_c10d._get_default_store()

    def save(self, step: int) -> None:
        """Begin a save, or complete it."""
        raise NotImplementedError

    def fence(self) -> None:
        """Wait until the state may change."""

    def durable(self, step: int) -> float | None:
        """Time at which the save was complete."""
        return self.done.get(step)

    def finish(self) -> None:
        """Wait for all saves."""
        for thread in self._threads:
            thread.join()

    def remove(self, step: int) -> None:
        """Delete a save; rank 0 only."""
        shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def close(self) -> None:
        """End helpers."""

    def completed(self, step: int) -> None:
        """Sync and commit the written bytes, if this variant has these steps, and note the time."""
        folder = self.folder / str(step)
        if self.safe:
            mine = [
                path for path in folder.iterdir() if f"__{self.rank}_" in path.name or path.suffix == f".{self.rank}"
            ]
            digests = {path.name: digest(path) for path in mine}
            synced(folder / f"digests.{self.rank}.json", json.dumps(digests).encode())
            sync_folder(folder)
            self._store.set(f"{step}/{self.rank}", b"1")
            if self.rank == 0:
                self._store.wait([f"{step}/{rank}" for rank in range(self.size)])
                synced(folder / "COMMIT", b"{}")
                sync_folder(folder)
                self._store.set(f"{step}/commit", b"1")
            self._store.wait([f"{step}/commit"])
        self.done[step] = time.perf_counter()

    def completed_later(self, step: int, future: "Future[Any]") -> None:
        """`completed` in a thread after a future's end."""

        def wait() -> None:
            future.result()
            self.completed(step)

        self._threads.append(threading.Thread(target=wait))
        self._threads[-1].start()


class TorchSave(System):
    """torch.save of each rank's dict into one file, fsync."""

    def save(self, step: int) -> None:
        folder = self.folder / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"state.{self.rank}", "wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        self.completed(step)


class DcpSave(System):
    """torch.distributed.checkpoint.save, with its defaults."""

    def writer(self, step: int) -> Any:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        return FileSystemWriter(self.folder / str(step))

    def save(self, step: int) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        save(self.state, storage_writer=self.writer(step))
        self.completed(step)


class DcpThreads(DcpSave):
    """The same with two threads, its best setting here."""

    def writer(self, step: int) -> Any:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter

        return FileSystemWriter(self.folder / str(step), thread_count=2)


class DcpSafetensors(DcpSave):
    """The same in safetensors."""

    def writer(self, step: int) -> Any:
        from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat

        return FileSystemWriter(self.folder / str(step), serialization_format=SerializationFormat.SAFETENSORS)


class DcpAsync(DcpSave):
    """async_save, with its defaults: a thread, and new staging buffers for every save."""

    process = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._future: Future[Any] | None = None
        # Its thread's collectives must not meet the trainer's.
        self._group = distributed.new_group(backend="gloo")

    def stager(self) -> Any:
        return None

    def save(self, step: int) -> None:
        from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, async_save

        if self._future is not None:
            self._future.result()
        kind = AsyncCheckpointerType.PROCESS if self.process else AsyncCheckpointerType.THREAD
        answer = async_save(
            self.state,
            storage_writer=self.writer(step),
            async_checkpointer_type=kind,
            async_stager=self.stager(),
            process_group=self._group,
        )
        self._staged = getattr(answer, "staging_completion", None)
        self._future = getattr(answer, "upload_completion", answer)
        self.completed_later(step, self._future)

    def fence(self) -> None:
        if self._staged is not None:
            self._staged.result()


class DcpAsyncKept(DcpAsync):
    """async_save with a stager that keeps its buffers."""

    background = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        options = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=True,
            use_async_staging=self.background,
            use_non_blocking_copy=False,
        )
        self._stager = DefaultStager(options)

    def stager(self) -> Any:
        return self._stager

    def close(self) -> None:
        self._stager.close()


class DcpAsyncStaged(DcpAsyncKept):
    """async_save with staging in the background: training waits at the fence, as with fmscale."""

    background = True


class DcpProcess(DcpAsyncKept):
    """async_save in a separate process."""

    process = True


class _Weights(torch.nn.Module):
    """Parameters, and a loss that depends on them."""

    def __init__(self, tensors: int, elements: int) -> None:
        super().__init__()
        parts = [torch.nn.Parameter(torch.zeros(elements // tensors)) for _ in range(tensors)]
        self.weights = torch.nn.ParameterList(parts)

    def forward(self) -> Tensor:
        return torch.stack([one.sum() for one in self.weights]).sum()


class DeepSpeed(System):
    """save_checkpoint of a ZeRO-1 engine in bf16 with as much optimizer state as the others' state (12 bytes a
    parameter); it also writes the bf16 weights, a sixth more. Its files are synced afterwards.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        total = sum(tensor.numel() for tensor in self.state.values()) * self.size
        model = _Weights(max(1, len(self.state)), total // 3)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.AdamW(model.parameters()),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": {"stage": 1},
                "zero_allow_untested_optimizer": True,
                "bf16": {"enabled": True},
            },
            dist_init_required=False,
        )
        self._engine.backward(self._engine())
        self._engine.step()  # makes the moments

    def save(self, step: int) -> None:
        folder = self.folder / str(step)
        self._engine.save_checkpoint(str(folder), tag="t")
        for path in (folder / "t").iterdir():
            if f"_rank_{self.rank}_" in path.name or (self.rank == 0 and "model_states" in path.name):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        self.completed(step)


class Fmscale(System):
    """fmscale with its defaults: digests, comparison with the previous save, synced folders, seals, the commit."""

    overlap, digests = True, True

    def __init__(self, folder: Path, state: State, rank: int, size: int, *, safe: bool) -> None:
        from fmscale.checkpoint.format.names import run_log
        from fmscale.checkpoint.format.piece import whole
        from fmscale.checkpoint.saver import Saver
        from fmscale.config.checkpoint import CheckpointConfig
        from fmscale.runtime.world import World
        from fmscale.store.log.lease import acquire
        from fmscale.store.open import open_store

        super().__init__(folder, state, rank, size, safe=safe)
        leases = [acquire(run_log(open_store(str(folder)), "run"), "bench").number if rank == 0 else 0]
        distributed.broadcast_object_list(leases)
        config = CheckpointConfig(
            keep_last=1,
            grace_seconds=0.0,
            overlap=self.overlap,
            digests=self.digests,
        )
        world = World(rank=rank, world_size=size)
        self.saver = Saver(str(folder), "run", world=world, lease=leases[0], config=config)
        self.pieces = [whole(name, tensor) for name, tensor in state.items()]
        self.saver.prepare(self.pieces)
        self.saver.fence()
        self.written: dict[int, int] = {}
        self._begun: dict[int, float] = {}

    def save(self, step: int) -> None:
        self._begun[step] = time.perf_counter()
        self.saver.save(step, self.pieces, {}, wait=True)

    def fence(self) -> None:
        self.saver.fence()

    def durable(self, step: int) -> float | None:
        for report in self.saver.poll():
            if report.state != "acknowledged":
                raise RuntimeError(f"{report.state}: {report.reason}")
            self.done[report.step] = self._begun[report.step] + report.durable_seconds
            self.written[report.step] = report.bytes_written
        return self.done.get(step)

    def finish(self) -> None:
        self.saver.drain(120)

    def remove(self, step: int) -> None:
        """Retention deletes the previous save."""

    def close(self) -> None:
        self.saver.close()


class FmscaleNoOverlap(Fmscale):
    """fmscale with a copy before `save` returns."""

    overlap = False


class FmscaleNoDigests(Fmscale):
    """fmscale without checksums."""

    digests = False


SYSTEMS: dict[str, tuple[type[System], bool]] = {
    "fmscale": (Fmscale, True),
    "fmscale_nooverlap": (FmscaleNoOverlap, True),
    "fmscale_nodigests": (FmscaleNoDigests, False),
    "torch_save": (TorchSave, False),
    "dcp_save": (DcpSave, False),
    "dcp_save_threads": (DcpThreads, False),
    "dcp_safetensors": (DcpSafetensors, False),
    "dcp_async": (DcpAsync, False),
    "dcp_async_kept": (DcpAsyncKept, False),
    "dcp_async_staged": (DcpAsyncStaged, False),
    "dcp_process": (DcpProcess, False),
    "deepspeed": (DeepSpeed, False),
    "torch_save_safe": (TorchSave, True),
    "dcp_save_safe": (DcpThreads, True),
    "dcp_async_staged_safe": (DcpAsyncStaged, True),
    "dcp_process_safe": (DcpProcess, True),
}
"""Name -> class, and True if it also gets digests and a commit."""


def digest(path: Path) -> int:
    """crc32c of a file, read back."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            value = crc32c.crc32c(block, value)
    return value


def synced(path: Path, data: bytes) -> None:
    """Write a small file and sync it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
