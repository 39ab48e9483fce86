"""T3 on one GPU: python -m benchmarks.train_gpu FOLDER. The real run, store and checkpoints included.

Sized to end in minutes: 60 steps of 32 rows of 2,048 tokens are 3.9 M tokens, 87 s at the target's 45,000 a second, and
175 s at half of that. A save takes more than a hundredth of so short a run: its cost is given in seconds, and compared
with the steps between two saves of the config.
"""

import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from fmscale.config import Config, load_config
from fmscale.config.derived import num_parameters
from fmscale.data.ingest import ingest
from fmscale.runtime.sinks.jsonl import read_jsonl
from fmscale.train.run import run_training

TARGET = 45_000.0
"""Tokens a second."""
STEPS, ROWS, EVERY, WARMUP = 60, 32, 20, 10
"""Steps, rows of a step, steps from save to save, and uncounted steps: compilation and the first reads."""
OVERHEAD_SECONDS = 300.0
"""Most seconds beside the steps: imports, ingest, first weights, compilation, and two saves of 17 GB at 0.5 GB/s."""
TIMEOUT = 540.0
"""Seconds, of which a run at half the target needs 475."""
CONFIG = ROOT / "configs" / "run" / "h200.yaml"


def main(folder: Path) -> dict[str, Any]:
    """Ingest, train, and the figures of the steps after the warm-up."""
    config, whole = load_config(CONFIG, overrides(folder)), load_config(CONFIG)
    needed, free = disk_bytes(config), shutil.disk_usage(folder).free
    if free < needed:
        raise RuntimeError(f"two checkpoints take {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free")
    corpus = Path(json.__file__).parent.parent
    ingest(
        [str(path) for path in sorted(corpus.glob("*.py"))],
        store=config.store.url,
        dataset="code",
        tokenizer="bpe:8192",
    )
    run_training(config, show=lambda record: None, event=lambda record: None)
    steps = [r for r in read_jsonl(folder / config.train.run / "metrics.jsonl") if "event" not in r]
    return summary(steps, whole)


def overrides(folder: Path) -> tuple[str, ...]:
    """Settings that differ from the config file."""
    return (
        f"store.url={folder / 'store'}",
        f"train.folder={folder}",
        f"train.steps={STEPS}",
        f"batch.global_batch={ROWS}",
        f"checkpoint.every={EVERY}",
        "checkpoint.keep_last=1",
        "checkpoint.grace_seconds=0",
        "data.sources=[{dataset: code}]",
    )


def disk_bytes(config: Config) -> int:
    """Bytes of the stored checkpoint and of the next: a master and two moments, fp32."""
    model = config.decoder("this benchmark")
    assert model.vocab_size is not None
    return 2 * 12 * num_parameters(model, model.vocab_size)


def summary(steps: Sequence[dict[str, Any]], whole: Config) -> dict[str, Any]:
    """Rates of a run's records, its saves, and their share of the run that the file describes."""
    counted = steps[WARMUP:]
    seconds = sum(r["seconds"] for r in counted)
    rate = sum(r["tokens"] for r in counted) / seconds
    quiet = statistics.median(r["seconds"] for r in steps[WARMUP : EVERY - 1])
    # A save begins after the step of its number: the next steps count it, and share the machine with it.
    saves = [steps[at : at + EVERY] for at in range(EVERY, STEPS, EVERY)]
    costs = [sum(r["seconds"] - quiet for r in part) for part in saves]
    assert whole.batch.global_batch is not None
    assert whole.checkpoint.every is not None
    between = whole.checkpoint.every * whole.batch.global_batch * whole.data.sequence_length / rate
    return {
        "tokens_per_second": rate,
        "data_stall": sum(r["data_stall"] for r in counted) / seconds,
        "save_seconds": costs,
        "save_blocking": [sum(r["ckpt_blocking"] for r in part) for part in saves],
        "save_share": max(costs) / between,
        "mfu": statistics.median(r["mfu"] for r in counted) if "mfu" in counted[0] else None,
        "runs": [{"system": "fmscale", "value": r["tokens_per_second"]} for r in counted],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
