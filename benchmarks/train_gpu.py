"""T3 on one GPU: python -m benchmarks.train_gpu FOLDER. The real run, store and checkpoints included."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from fmscale.config import load_config
from fmscale.data.ingest import ingest
from fmscale.runtime.sinks import read_jsonl
from fmscale.train.run import run_training

STEPS = 220
WARMUP = 20
"""Steps that are not counted: compilation and the first reads. Two checkpoints fall into the rest."""


def main(folder: Path) -> dict[str, Any]:
    """Ingest, train, and what the steps after the warm-up came to."""
    store = str(folder / "store")
    corpus = Path(json.__file__).parent.parent
    ingest(
        [str(path) for path in sorted(corpus.glob("*.py"))], store=store, dataset="code", tokenizer="bpe:8192"
    )
    config = load_config(
        ROOT / "configs" / "run" / "h200.yaml",
        (
            f"store.url={store}",
            f"train.folder={folder}",
            f"train.steps={STEPS}",
            "checkpoint.every=100",
            "data.sources=[{dataset: code}]",
        ),
    )
    run_training(config, show=lambda record: None, event=lambda record: None)
    steps = [r for r in read_jsonl(folder / config.train.run / "metrics.jsonl") if "event" not in r][WARMUP:]
    seconds = sum(r["seconds"] for r in steps)
    return {
        "tokens_per_second": sum(r["tokens"] for r in steps) / seconds,
        "data_stall": sum(r["data_stall"] for r in steps) / seconds,
        "ckpt_blocking": sum(r["ckpt_blocking"] for r in steps) / seconds,
        "mfu": statistics.median(r["mfu"] for r in steps) if "mfu" in steps[0] else None,
        "runs": [{"system": "fmscale", "value": r["tokens_per_second"]} for r in steps],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
