"""Step 0: versions, the device, the import of DeepSpeed without a toolkit, and the corpus.

The corpus is the top level of this Python's standard library, tokenised here in 3.5 s on two shared cores, so that no
corpus of another commit is copied.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.gpu_hour.emit import emit
from fmscale.runtime.provenance import versions

PACKAGES = ("torch", "triton", "deepspeed", "numpy", "pyarrow", "obstore", "zstandard", "crc32c", "pydantic")
TOKENIZER = "bpe:8192"


def device() -> dict[str, object]:
    """Properties of torch's GPU, or nothing."""
    import torch

    if not torch.cuda.is_available():
        return {"gpu": None}
    seen = torch.cuda.get_device_properties(0)
    return {
        "gpu": seen.name,
        "gpu_bytes": seen.total_memory,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
    }


def main() -> None:
    """Emit the findings, then ingest for the training steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--files", type=int, help="of the corpus, the first")
    parser.add_argument("--kernels-alone", action="store_true")
    asked = parser.parse_args()
    emit(sys.stdout, about="versions", versions=versions(PACKAGES), **device())
    if asked.kernels_alone:
        return
    from torch.utils.cpp_extension import CUDA_HOME

    began = time.perf_counter()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    emit(
        sys.stdout, about="deepspeed", import_seconds=time.perf_counter() - began, toolkit=CUDA_HOME,
        accelerator=get_accelerator().device_name(), origin=deepspeed.__file__,
    )  # fmt: skip
    from fmscale.data.ingest import ingest

    files = [str(path) for path in sorted(Path(json.__file__).parent.parent.glob("*.py"))]
    result = ingest(files[: asked.files], store=asked.store, dataset="code", tokenizer=TOKENIZER)
    emit(
        sys.stdout, about="corpus", tokens=result.tokens, documents=result.documents,
        tokenizer=result.tokenizer, seconds=result.seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
