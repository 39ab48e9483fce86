"""A loader that can be killed: delivers an epoch, records every row, saves its state every few steps.

`python -m benchmarks.peers.resume STORE FOLDER ROWS`: resumes at FOLDER/state.json if it exists; FOLDER/rows gets 16
bytes a row (sample number, xxh3_64 of its tokens); the state has the number of rows before it.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

SAVE_STEPS = 16


def main() -> None:
    """Deliver until `ROWS` samples are done; prints the seconds to the first batch."""
    started = time.time()
    import xxhash

    from benchmarks.peers.common import BATCH, ROW_TOKENS
    from fmscale.data.open import open_loader

    torch.set_num_threads(1)
    store, folder, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    loader = open_loader(store, dataset="corpus", sequence_length=ROW_TOKENS, batch=BATCH, seed=0)
    state_path, rows_path = folder / "state.json", folder / "rows"
    saved = json.loads(state_path.read_text()) if state_path.exists() else None
    with rows_path.open("r+b" if rows_path.exists() else "w+b", buffering=0) as out:
        if saved is not None:
            loader.load_state_dict(saved["loader"])
        out.truncate(saved["bytes"] if saved else 0)
        out.seek(0, os.SEEK_END)
        first = None
        for batch in loader:
            if first is None:
                first = time.time() - started
            for i in range(batch.rows):
                digest = xxhash.xxh3_64_intdigest(batch.tokens[i].numpy())
                out.write(int(batch.k[i]).to_bytes(8, "little") + digest.to_bytes(8, "little"))
            if batch.step % SAVE_STEPS == 0 or loader.k >= rows:
                text = json.dumps({"loader": loader.state_dict(), "bytes": out.tell()})
                part = folder / "state.part"
                part.write_text(text)
                part.replace(state_path)
            if loader.k >= rows:
                break
    print(json.dumps({"first_batch_seconds": first}))


if __name__ == "__main__":
    main()
