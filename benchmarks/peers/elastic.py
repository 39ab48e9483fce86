"""A node that only delivers: rank processes that share its cache, at a sequence of numbers of ranks.

`python -m benchmarks.peers.elastic SPEC.json`, where the file has store, sources [[dataset, weight], …], batch (a
schedule), folder, cache (null: none) and phases [[ranks, steps], …]. Every rank of every phase is a process: it
restores the state of the previous ranks, delivers its part of the steps, and records its rows. Prints, for each phase,
the bytes that its ranks read from the store.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run all phases."""
    import pyarrow as pa
    import torch

    torch.set_num_threads(1)
    pa.array([0])  # pyarrow's first conversion imports pandas where it is installed, which would cost each rank 0.3 s
    spec = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(spec["folder"])
    state: dict[str, Any] | None = None
    read = []
    for phase, (ranks, steps) in enumerate(spec["phases"]):
        processes = [_fork(spec, state, phase, rank, ranks, steps) for rank in range(ranks)]
        failed = [rank for rank, pid in enumerate(processes) if os.waitpid(pid, 0)[1]]
        if failed:
            raise SystemExit(f"phase {phase} of {ranks} ranks: ranks {failed} failed")
        ends = [json.loads((folder / f"{phase}-{rank}.json").read_text()) for rank in range(ranks)]
        if any(end["state"] != ends[0]["state"] for end in ends):
            raise SystemExit(f"phase {phase} of {ranks} ranks: their states differ")
        state = ends[0]["state"]
        read.append(sum(end["store_bytes"] for end in ends))
    print(json.dumps({"store_bytes": read, "k": state["k"] if state else 0}))


def _fork(spec: dict[str, Any], state: dict[str, Any] | None, phase: int, rank: int, ranks: int, steps: int) -> int:
    """The id of a new rank process. This process has no threads yet, so a fork is safe."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _deliver(spec, state, Path(spec["folder"]) / f"{phase}-{rank}", rank, ranks, steps)
        status = 0
    except BaseException as error:
        print(f"rank {rank} of {ranks}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(status)


def _deliver(spec: dict[str, Any], state: dict[str, Any] | None, path: Path, rank: int, ranks: int, steps: int) -> None:
    from benchmarks.peers.common import ROW_TOKENS
    from fmscale.config import SourceConfig
    from fmscale.data.open import open_loader
    from fmscale.data.provenance.delivery import DeliveryRecord
    from fmscale.store.open import open_store

    store = open_store(spec["store"])
    loader = open_loader(
        store,
        sources=[SourceConfig(dataset=name, weight=weight) for name, weight in spec["sources"]],
        sequence_length=ROW_TOKENS,
        batch=[(step, rows) for step, rows in spec["batch"]],
        seed=5,
        dp_rank=rank,
        dp_size=ranks,
        micro_batch=8,
        memory_bytes=128 * 2**20,
        cache_dir=spec["cache"],
        document_ids=True,
    )
    if state is not None:
        loader.load_state_dict(state)
    left = steps
    with DeliveryRecord(path.with_suffix(".arrow"), "uint16") as record:
        while left:
            batch = next(loader)
            record.add(batch)
            left -= batch.last_of_step
    loader.close()
    end = {"state": loader.state_dict(), "store_bytes": sum(store.requests.bytes.values())}
    path.with_suffix(".json").write_text(json.dumps(end))


if __name__ == "__main__":
    main()
