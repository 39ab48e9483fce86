"""Work of `benchmarks.pairs` on ingest: texts, records, and texts on an S3 store whose requests take 20 ms."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

LATENCY = 0.020
TEXTS, PER_FILE = 24_000, 1_500
"""Texts of 1 KB: 24 MB in 16 files of JSON Lines, and a Parquet file of the same size."""


def _texts() -> Iterator[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(4000)]
    for _ in range(TEXTS):
        yield " ".join(draw.choices(words, k=draw.randint(40, 280)))


@contextmanager
def prepared(work: str, folder: Path) -> Iterator[None]:
    """Write the inputs, and for `ingest-s3` serve them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = list(_texts())
    (folder / "in").mkdir()
    for number in range(0, TEXTS, PER_FILE):
        rows = [
            json.dumps({"id": number + i, "text": text}) for i, text in enumerate(texts[number : number + PER_FILE])
        ]
        (folder / f"in/{number:06d}.jsonl").write_text("\n".join(rows) + "\n")
    table = pa.table({"id": range(TEXTS), "text": texts, "score": [0.5] * TEXTS, "tags": [["a", "b"]] * TEXTS})
    pq.write_table(table, folder / "in/rows.parquet")
    if work != "ingest-s3":
        yield
        return
    from fmscale.store.open import open_store
    from tests.helpers.fault_proxy import FaultProxy
    from tests.helpers.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with S3Server() as server, FaultProxy("127.0.0.1", server.port) as proxy:
        bucket = server.new_bucket()
        store = open_store(server.url(bucket))
        for path in sorted((folder / "in").iterdir()):
            store.put_file(f"in/{path.name}", path)
        base, mark, query = server.url(bucket, endpoint=proxy.endpoint).partition("?")
        (folder / "url").write_text(f"{base}/in{mark}{query}")
        proxy.set_latency(p50=LATENCY)
        yield


def job(work: str, folder: Path) -> Callable[[], None]:
    """A function that ingests all inputs into a new store."""
    from fmscale.data.ingest import ingest

    source = (folder / "url").read_text() if work == "ingest-s3" else str(folder / "in")
    options = {"kind": "records"} if work == "ingest-records" else {"tokenizer": "bytes"}
    numbers = count()

    def run() -> None:
        store = folder / f"store-{id(numbers)}-{next(numbers)}"
        result = ingest([source], store=str(store), dataset="d", workers=1, heldout=0.01, scratch=folder, **options)
        assert result.documents == 2 * TEXTS
        shutil.rmtree(store)

    return run
