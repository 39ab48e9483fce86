"""Delivers an epoch in flat forwards and tells lengths, bytes and memory.

`python -m benchmarks.peers.flat STORE DATASET WINDOW MEMORY_BYTES STEPS`: imports everything, then opens a loader of
one node, delivers STEPS steps, and prints the most memory held meanwhile and the bytes of a step's tensors.
"""

import ctypes
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

SAMPLES = 64
"""Samples of a step."""
FORWARD_TOKENS = {"texts": 81_920, "pictures": 204_800}
"""Most tokens of a forward by dataset: the longest record fits, whose tokens are its bytes."""
MIB = 2**20


def dataset_of(url: str, name: str, tables: Sequence[pa.Table]) -> None:
    """Store records of text, with their sizes."""
    from fmscale.data.samples.specs import make_spec
    from fmscale.store.open import open_store
    from tests.helpers.record_datasets import add_sizes, record_dataset

    store = open_store(url)
    dataset = record_dataset(store, name, tables)
    add_sizes(dataset, make_spec(_spec(), store, limit=FORWARD_TOKENS[name]), tables)


def deliver(url: str, name: str, node: int, nodes: int, samples: int, steps: int, **options: Any) -> dict[str, Any]:
    """`steps` steps of one node: tokens, positions, samples and the longest sample by step; bytes read, with those of
    the steps that the loader reads ahead; bytes of the largest step.
    """
    from fmscale.data.open import open_flat_loader
    from fmscale.store.open import open_store

    store = open_store(url)
    tokens, positions, longest, counts = ([0] * steps for _ in range(4))
    most = 0
    with open_flat_loader(
        store,
        dataset=name,
        spec=_spec(),
        forward_tokens=FORWARD_TOKENS[name],
        batch=samples,
        dp_rank=node,
        dp_size=nodes,
        nodes=nodes,
        threads=2,
        **options,
    ) as loader:
        opened = sum(store.requests.bytes.values())
        step = held = 0
        while step < steps:
            forward = next(loader)
            lengths = forward.bounds.diff()
            tokens[step] += int(forward.bounds[-1])
            positions[step] += forward.weights.numel()
            longest[step] = max(longest[step], int(lengths.max()) if len(lengths) else 0)
            counts[step] += len(lengths)
            held += sum(part.nbytes for part in forward.parts.values()) + forward.weights.nbytes
            held += forward.positions.nbytes
            if forward.last_of_step:
                most, held, step = max(most, held), 0, step + 1
        _settle(lambda: sum(store.requests.bytes.values()))
        read = sum(store.requests.bytes.values()) - opened
    return {
        "tokens": tokens,
        "positions": positions,
        "longest": longest,
        "samples": counts,
        "read": read,
        "step_bytes": most,
    }


def _settle(value: Callable[[], int]) -> None:
    """Wait until a count no longer rises."""
    before = -1
    while before != (before := value()):
        time.sleep(0.05)


def _spec() -> Any:
    from fmscale.config.spec import TextSpec

    return TextSpec(tokenizer="bytes")


def _memory() -> int:
    """Bytes of this process's memory that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def main() -> None:
    """Import, deliver, measure."""
    import torch

    import fmscale.data.flat_loader  # noqa: F401

    torch.set_num_threads(1)
    url, name, window, memory, steps = sys.argv[1:]
    deliver(url, name, 0, 1, SAMPLES, 1)  # imports of the libraries
    # Memory that the first step freed and the allocators kept would serve the second delivery, unseen.
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    before = most = _memory()
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.002):
            most = max(most, _memory())

    thread = threading.Thread(target=watch)
    thread.start()
    told = deliver(url, name, 0, 1, SAMPLES, int(steps), window=int(window), memory_bytes=int(memory))
    ended.set()
    thread.join()
    print(json.dumps({"held": most - before, "step_bytes": told["step_bytes"]}))


if __name__ == "__main__":
    main()
