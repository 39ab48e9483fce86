"""MosaicML Streaming: MDS shards of uint16 rows, StreamingDataset with its default shuffle."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.common import BATCH, ROW_TOKENS, corpus_rows


def import_streaming() -> Any:
    """`import streaming` beside a CPU build of torch: torchvision's wheel is a CUDA build whose operators do not load
    there. A declaration of the two operators that it looks up is enough; streaming never calls them.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import streaming

    return streaming, library


def prepare(corpus: Path, out: Path) -> None:
    """Write MDS shards of 64 MB."""
    streaming, _library = import_streaming()
    column = {"tokens": f"ndarray:uint16:{ROW_TOKENS}"}
    with streaming.MDSWriter(out=str(out), columns=column, size_limit="64mb") as writer:
        for row in corpus_rows(corpus):
            writer.write({"tokens": row})


def feed(corpus: Path, data: str, remote: str | None = None) -> Iterator[torch.Tensor]:
    """StreamingDataset through torch's DataLoader, no workers; a fresh process cleans stale shared memory."""
    streaming, _library = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    dataset = streaming.StreamingDataset(
        local=data, remote=remote, shuffle=True, batch_size=BATCH, num_canonical_nodes=1
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, collate_fn=lambda items: torch.stack([widen(item) for item in items])
    )
    return iter(loader)


def feed_s3(corpus: Path, data: str, cache: str) -> Iterator[torch.Tensor]:
    """The same from S3 into an empty cache (S3_ENDPOINT_URL names the server)."""
    return feed(corpus, cache, remote=data)


def widen(item: dict[str, Any]) -> torch.Tensor:
    """One row as int64."""
    return torch.from_numpy(item["tokens"].astype("int64"))
