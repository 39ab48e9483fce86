"""A store with a dataset and the checkpoints of a run, made without an engine."""

from pathlib import Path
from typing import Any

import torch

from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.format.piece import whole
from fmscale.checkpoint.saver import Saver
from fmscale.config import CheckpointConfig, ModelConfig, as_tree
from fmscale.data.ingest import ingest
from fmscale.models import Decoder, build
from fmscale.runtime.world import World
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.lease import acquire
from fmscale.store.open import open_store

TEXTS = {f"{i:02d}.txt": f"Document {i}: " + "the quick brown fox, naïve. " * (3 + 5 * i) for i in range(8)}
MODEL = ModelConfig(num_layers=2, dim=32, num_heads=4, num_kv_heads=2, max_seq_len=96, init_std=0.2, tied=True)


def store_texts(folder: Path, **options: Any) -> str:
    """URL of a store with the dataset `docs`, half of it held out."""
    texts = folder / "texts"
    texts.mkdir(parents=True)
    for name, text in TEXTS.items():
        (texts / name).write_text(text)
    url = str(folder / "store")
    ingest(
        [str(texts)],
        store=url,
        dataset="docs",
        **{"tokenizer": "bytes", "heldout": 0.5, "workers": 1, **options},
    )
    return url


def save_run(url: str, run: str, steps: tuple[int, ...], model_config: ModelConfig = MODEL, **meta: Any) -> Decoder:
    """Save random weights as the run's checkpoint at each step; the model of the last."""
    backend = open_store(url)
    tokenizer = open_dataset(backend, "docs").commits()[-1].tokenizer
    model = build(model_config, vocab_size=meta.get("vocab_size", 272))
    lease = acquire(run_log(backend, run), "test")
    world = World()
    saver = Saver(url, run, world=world, lease=lease.number, config=CheckpointConfig(keep_last=9))
    for step in steps:
        saver.fence()  # the previous step's copy may still be under way
        model.init_weights(torch.Generator().manual_seed(step))
        pieces = [whole(name, parameter) for name, parameter in model.named_parameters()]
        said = {"vocab_size": model.vocab_size, "tokenizer": tokenizer, **meta}
        tree = {"model": as_tree(model_config), "data": {"sequence_length": 64, "sources": [{"dataset": "docs"}]}}
        saver.save(step, pieces, {"step": step, "config": tree, **said}, wait=True)
    assert {report.state for report in saver.close(60.0)} == {"acknowledged"}
    return model.eval()
