"""One system, n gloo ranks: `python -m benchmarks.peers.checkpoint_run SYSTEM ACTION --ranks N ...`; JSON last.

Actions: `save` (windows of training steps with and without a save), `second` (bytes of a save after a part of
the state changed), `restore` (a new process reads the files of `save`), `memcpy` (the limit of a snapshot).
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing

from benchmarks.peers.checkpoint_systems import SYSTEMS, State, System

DTYPE = torch.float32


def make_state(rank: int, size: int, total: int, tensors: int) -> State:
    """This rank's share of a state of `total` bytes: equal tensors ("few"), or for more than 100 tensors sizes over two
    orders of magnitude around the median, like biases and matrices.
    """
    count = max(1, tensors // size)
    share = total // size // 4
    if tensors <= 100:
        sizes = np.full(count, share / count)
    else:
        sizes = np.random.default_rng(rank).lognormal(0.0, 1.5, count)
        sizes *= share / sizes.sum()
    generator = torch.Generator().manual_seed(rank)
    return {
        f"rank{rank}.t{i}": torch.empty(max(1, int(n)), dtype=DTYPE).uniform_(generator=generator)
        for i, n in enumerate(sizes)
    }


class Training:
    """Steps of a fixed amount of work: a forward and backward that do not read the state, and an optimizer
    that writes all of it.
    """

    def __init__(self, state: State, step_seconds: float) -> None:
        self.state = state
        self.matrix = torch.rand(256, 256)
        begin = time.perf_counter()
        for _ in range(20):
            self.matrix @ self.matrix
        self.rounds = max(1, int(step_seconds / ((time.perf_counter() - begin) / 20)))

    def compute(self) -> None:
        """Forward and backward."""
        for _ in range(self.rounds):
            self.matrix @ self.matrix

    def update(self) -> None:
        """The optimizer."""
        for tensor in self.state.values():
            tensor.mul_(1.0001)


def slowest(value: float) -> float:
    """The largest of all ranks' values."""
    one = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(one, op=distributed.ReduceOp.MAX)
    return float(one)


def measure_saves(system: System, options: argparse.Namespace) -> list[dict[str, Any]]:
    """For each repeat: stall, time until durable, and the cost of the save to the steps of the window after it."""
    training = Training(system.state, options.step_seconds)
    runs = []
    for repeat in range(options.repeats + 1):
        step = options.first_step + repeat
        distributed.barrier()
        begin = time.perf_counter()
        for _ in range(options.steps):
            training.compute()
            training.update()
        distributed.barrier()
        idle = slowest(time.perf_counter() - begin)
        begin = time.perf_counter()
        system.save(step)
        stall = time.perf_counter() - begin
        longest = 0.0
        for _ in range(options.steps):
            one = time.perf_counter()
            training.compute()
            waited = time.perf_counter()
            system.fence()
            stall += time.perf_counter() - waited
            training.update()
            longest = max(longest, time.perf_counter() - one)
        distributed.barrier()
        window = slowest(time.perf_counter() - begin)
        system.finish()
        while system.durable(step) is None:
            time.sleep(0.001)
        durable = slowest(system.durable(step) - begin)  # type: ignore[operator]
        run = {
            "stall": slowest(stall),
            "durable": durable,
            "cost": window - idle,
            "idle": idle,
            "window": window,
            "longest_step": slowest(longest),
            "bytes": options.bytes,
        }
        distributed.barrier()
        if system.rank == 0 and (repeat < options.repeats or not options.keep):
            system.remove(step)
        if repeat:  # the first one warms up
            runs.append(run)
    return runs


def measure_second(system: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Bytes written by a save after a tenth of the state has changed."""
    names = sorted(system.state)
    changed = names[: max(1, len(names) // 10)]
    for step in (1, 2):
        system.save(step)
        system.fence()
        if step == 1:
            system.finish()
            for name in changed:
                system.state[name].mul_(1.01)
    system.finish()
    while system.durable(2) is None:
        time.sleep(0.001)
    needed = sum(system.state[name].nbytes for name in changed)
    return [{"written": system.written[2], "changed": needed}]


def measure_restore(name: str, folder: Path, state: State, rank: int, size: int) -> list[dict[str, Any]]:
    """Seconds to fill the state from the last save, with a cold page cache; bytes read over bytes needed. Imports of a
    training run come first, for all systems.
    """
    from torch.distributed.checkpoint import FileSystemReader, load

    from fmscale.checkpoint.format.piece import whole
    from fmscale.checkpoint.read.restore import restore
    from fmscale.store.open import open_store

    needed = sum(tensor.nbytes for tensor in state.values())
    expected = {key: float(tensor[0]) for key, tensor in state.items()}
    for tensor in state.values():
        tensor.zero_()
    if rank == 0:
        os.sync()
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read = float(needed)
    distributed.barrier()
    begin = time.perf_counter()
    if name.startswith("fmscale"):
        found = restore(
            open_store(str(folder), read_only=True),
            "run",
            [whole(key, tensor) for key, tensor in state.items()],
            partial=True,
        )
        assert found is not None
        read = found.bytes_read
    elif name.startswith("torch_save"):
        [path] = sorted(folder.glob(f"*/state.{rank}"))
        loaded = torch.load(path, weights_only=True)
        for key, tensor in state.items():
            tensor.copy_(loaded[key])
    else:
        [path] = [one for one in folder.iterdir() if one.is_dir()]
        load(state, storage_reader=FileSystemReader(path))
    seconds = slowest(time.perf_counter() - begin)
    assert all(float(tensor[0]) != 0.0 for tensor in state.values()), (name, expected)
    return [{"seconds": seconds, "bytes": needed * size, "ratio": slowest(read / needed)}]


def measure_memcpy(state: State) -> list[dict[str, Any]]:
    """One copy of the rank's state into warm shared memory, all ranks at once."""
    from fmscale.checkpoint.snapshot.memory import SharedMemory

    sizes = [tensor.nbytes for tensor in state.values()]
    memory = np.frombuffer(SharedMemory(sum(sizes)).view, dtype=np.uint8)
    runs = []
    for _ in range(5):
        distributed.barrier()
        begin, at = time.perf_counter(), 0
        for tensor in state.values():
            np.copyto(memory[at : at + tensor.nbytes], tensor.view(torch.uint8).numpy())
            at += tensor.nbytes
        runs.append({"seconds": slowest(time.perf_counter() - begin)})
    return runs[1:]


def serve(rank: int, options: argparse.Namespace, meeting: str, result: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(options.ranks), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", GLOO_SOCKET_IFNAME="lo")
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.ranks)
    state = make_state(rank, options.ranks, options.bytes, options.tensors)
    if options.action == "memcpy":
        runs = measure_memcpy(state)
    elif options.action == "restore":
        runs = measure_restore(options.system, options.folder, state, rank, options.ranks)
    else:
        kind, safe = SYSTEMS[options.system]
        options.folder.mkdir(parents=True, exist_ok=True)
        system = kind(options.folder, state, rank, options.ranks, safe=safe)
        runs = (measure_second if options.action == "second" else measure_saves)(system, options)
        system.close()
    if rank == 0:
        Path(result).write_text(json.dumps({"runs": runs}))
    distributed.barrier()
    distributed.destroy_process_group()


def main() -> None:
    """Start the ranks and print rank 0's result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("action", choices=["save", "second", "restore", "memcpy"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--bytes", type=int, default=256 << 20)
    parser.add_argument("--tensors", type=int, default=60)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--step-seconds", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first-step", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="leave the last save for `restore`")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = f"{folder}/result.json"
        multiprocessing.start_processes(
            serve, (options, f"{folder}/meet", result), nprocs=options.ranks, start_method="spawn"
        )
        print(Path(result).read_text())


if __name__ == "__main__":
    main()
