"""What a run is told: dataclasses per section, read strictly from YAML (see `load.py`). Imports no torch."""

from fmscale.config.batch import BatchConfig, BatchShape, derive_batch
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.config.data import DataConfig, SourceConfig
from fmscale.config.launch import LaunchConfig
from fmscale.config.model import ModelConfig, RopeScaling, flops_per_token, num_parameters
from fmscale.config.reader.load import load_config
from fmscale.config.schema import Config, as_tree, as_yaml
from fmscale.config.store import StoreConfig
from fmscale.config.train import (
    EvaluationConfig,
    EvaluationSet,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

__all__ = [
    "BatchConfig",
    "BatchShape",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "EvaluationSet",
    "LaunchConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RopeScaling",
    "ScheduleConfig",
    "SourceConfig",
    "StoreConfig",
    "TrainConfig",
    "as_tree",
    "as_yaml",
    "derive_batch",
    "flops_per_token",
    "load_config",
    "num_parameters",
]
