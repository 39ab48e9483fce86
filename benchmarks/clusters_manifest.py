"""R2.manifest: rank 0's commit of a checkpoint of 70 B parameters by 512 ranks, on a store that takes 20 ms a request.

    python -m benchmarks.clusters_manifest [--quick]

The seals have the form and size of ZeRO stage 3: each rank holds a range of every tensor, in fp32 with both moments.
The commit is the real code, in a process of its own, whose peak memory counts.
"""

import json
import resource
import sys
import tempfile
import time
from typing import Any

from benchmarks.harness import Claim, run_json
from fmscale.checkpoint.format.layout import FileRange, Tensor, plan_layout
from fmscale.checkpoint.format.names import checkpoint_folder, data_key, run_log, seal_key
from fmscale.checkpoint.format.seal import Seal, StoredFile, StoredPiece, encode_seal
from fmscale.checkpoint.persist.commit import RunState, commit_seals, gather_seals
from fmscale.checkpoint.persist.job import SaveJob, SaveSettings
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.store.log.lease import acquire
from fmscale.store.open import open_store

RANKS = {False: 512, True: 64}
LAYERS, DIM, KV, HIDDEN, VOCAB = 80, 8192, 1024, 28672, 128256
"""Llama's 70 B."""
LATENCY = 0.02
"""Seconds of a request."""
TARGET = 20.0
RUN = "wide"


def tensors() -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes: 723 tensors."""
    block = {
        "attention.wq": (DIM, DIM),
        "attention.wk": (KV, DIM),
        "attention.wv": (KV, DIM),
        "attention.wo": (DIM, DIM),
        "feed_forward.w1": (HIDDEN, DIM),
        "feed_forward.w2": (DIM, HIDDEN),
        "feed_forward.w3": (HIDDEN, DIM),
        "attention_norm": (DIM,),
        "ffn_norm": (DIM,),
    }
    outside = {"embeddings": (VOCAB, DIM), "norm": (DIM,), "output": (VOCAB, DIM)}
    layers = [(f"layers.{i}.{name}.weight", shape) for i in range(LAYERS) for name, shape in block.items()]
    return [*layers, *((f"{name}.weight", shape) for name, shape in outside.items())]


def seal_of(rank: int, size: int, folder: str) -> Seal:
    """The seal of one rank: its range of every tensor in three states."""
    ranges = []
    for name, shape in tensors():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1) // size
        for state in ("weight", "exp_avg", "exp_avg_sq"):
            tensor = Tensor(name, state, "float32", shape)
            ranges.append(FileRange(tensor=tensor, start=rank * count, count=count))
    layout = plan_layout(ranges)
    files, pieces = [], []
    for number, image in enumerate(layout.files):
        nbytes = image.header_bytes + image.data_bytes
        files.append(StoredFile(key=data_key(folder, rank, number), bytes=nbytes, sums=f"{rank:032x}"))
        for i in range(image.first, image.stop):
            offset = layout.offsets[i] - image.begin
            pieces.append(
                StoredPiece(range=layout.ranges[i], file=number, offset=offset, digest=f"{rank * 65536 + i:032x}")
            )
    nbytes = sum(piece.nbytes for piece in layout.ranges)
    return Seal(
        step=1,
        folder=folder,
        rank=rank,
        world_size=size,
        files=tuple(files),
        pieces=tuple(pieces),
        bytes=nbytes,
        referenced=0,
        meta={"step": 1} if rank == 0 else None,
    )


def slow(backend: Any) -> Any:
    """The backend with LATENCY before each request; its local paths are hidden, as an object store has none."""

    class Slow:
        def __getattr__(self, name: str) -> Any:
            inner = getattr(backend, name)
            if not callable(inner):
                return inner

            def request(*values: Any, **named: Any) -> Any:
                time.sleep(LATENCY)
                return inner(*values, **named)

            return request

        def local_path(self, key: str) -> None:
            return None

    return Slow()


def commit(url: str, size: int, folder: str, lease: int) -> dict[str, float]:
    """Gather the seals and commit them, as rank 0's persist process does; seconds of both, and the peak of memory."""
    backend = open_store(url)
    settings = SaveSettings(
        url=url, deadline=60.0, run=RUN, rank=0, world_size=size, lease=lease, config=CheckpointConfig()
    )
    job = SaveJob(number=0, step=1, folder=folder, complete=True, meta={"step": 1}, rank_meta=None)
    own = seal_of(0, size, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    seals = gather_seals(slow(backend), settings, job, own, lambda: False)
    gathered = time.monotonic()
    entry = commit_seals(run_log(slow(backend), RUN), settings, job, seals, RunState())
    return {
        "seconds": time.monotonic() - begin,
        "gather": gathered - begin,
        "cpu": time.process_time(),
        "pieces": sum(len(seal.pieces) for seal in seals),
        "manifest_bytes": entry.body["manifest"]["bytes"],
        "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def manifest_claim(*, quick: bool) -> Claim:
    """R2.manifest; --quick commits 64 ranks."""
    size = RANKS[quick]
    with tempfile.TemporaryDirectory(prefix="fmscale-manifest-") as place:
        url = f"{place}/store"
        backend = open_store(url)
        lease = acquire(run_log(backend, RUN), "benchmark").number
        folder = checkpoint_folder(RUN, 1, lease)
        for rank in range(size):
            backend.put(seal_key(folder, rank), encode_seal(seal_of(rank, size, folder)))
        command = [sys.executable, "-m", "benchmarks.clusters_manifest", "commit", url, str(size), folder, str(lease)]
        run = run_json(command, timeout=300.0)
    return Claim(
        id="R2.manifest",
        what=f"rank 0's commit of 70 B parameters by {size} ranks, {run['pieces']} pieces, {LATENCY * 1000:.0f} ms a "
        f"request: {run['gather']:.1f} s to gather the seals, {run['megabytes']:.0f} MB of memory",
        unit="s",
        ours=run["seconds"],
        ratio=run["seconds"],
        target=f"<= {TARGET:.0f}",
        ok=run["seconds"] <= TARGET,
        runs=[{"system": "fmscale", "value": run["seconds"], **run}],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["commit"]:
        print(json.dumps(commit(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))))
    else:
        claim = manifest_claim(quick="--quick" in sys.argv)
        print(claim.id, claim.ours, claim.unit, claim.what, json.dumps(claim.runs))
