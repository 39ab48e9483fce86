"""A project of a user's own: fmscale's public names, and the types that a type checker must see in them."""

from collections.abc import Mapping
from typing import Any, assert_type

import torch

import fmscale
from fmscale.checkpoint.catalog import CheckpointEntry
from fmscale.checkpoint.checkpoint import Checkpoint
from fmscale.config import ModelConfig, Own
from fmscale.data.ingest import IngestResult
from fmscale.data.loader import Loader
from fmscale.infer import Completion, Document, Evaluation
from fmscale.infer.load import TrainedModel
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import Dataset
from fmscale.train.run import Outcome


def read(url: str) -> Loader:
    """Files to a dataset, and a dataset to batches."""
    assert_type(fmscale.ingest(["corpus"], store=url, dataset="docs"), IngestResult)
    store = assert_type(fmscale.open_store(url), Backend)
    assert_type(fmscale.list_datasets(store), list[str])
    assert_type(fmscale.open_dataset(store, "docs"), Dataset)
    loader = assert_type(fmscale.open_loader(store, dataset="docs", sequence_length=128, batch=8), Loader)
    for batch in fmscale.TokenDataset(loader):
        assert_type(batch, dict[str, torch.Tensor])
    return loader


def train(path: str) -> str:
    """A run, or the reason why there is none."""

    def show(record: Mapping[str, Any]) -> None:
        print(record)

    try:
        config = assert_type(fmscale.load_config(path, ["train.steps=3"]), fmscale.Config)
        assert_type(config.model, ModelConfig | Own)
        assert_type(fmscale.run_training(config, show=show, event=show), Outcome)
    except fmscale.FmscaleError as error:
        return assert_type(error.remedy, str)
    return assert_type(fmscale.__version__, str)


def use(url: str) -> None:
    """A model from its checkpoint."""
    assert_type(fmscale.list_checkpoints(fmscale.open_store(url), "run"), list[CheckpointEntry])
    checkpoint = assert_type(fmscale.open_checkpoint(f"{url}#run@3"), Checkpoint)
    assert_type(checkpoint.tensor("output.weight"), torch.Tensor)
    trained = assert_type(fmscale.open_trained(f"{url}#run"), TrainedModel)
    sampling = fmscale.Sampling(temperature=0.8, top_p=0.95)
    assert_type(fmscale.generate(trained.model, [[1, 2]], max_tokens=8, sampling=sampling), list[Completion])
    documents: list[Document] = []
    assert_type(fmscale.evaluate(trained.model, documents), Evaluation)
