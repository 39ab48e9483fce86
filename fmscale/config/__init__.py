"""The config of a run: one dataclass for each section, read strictly from YAML. Imports no torch.

`schema.py`      the whole config, and its plain values or YAML
`store.py`, `data.py`, `batch.py`, `model.py`, `train.py`, `checkpoint.py`, `launch.py`  the sections
`checks.py`      refusal of a field's value
`derived.py`     batch, parameters and FLOPs, which follow from a config
`peaks.py`       peak FLOP/s of devices
`reader/`        from YAML to the dataclasses, and the config's reference for people and editors
"""

from typing import TYPE_CHECKING, Any

from fmscale.config.batch import BatchConfig
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.config.data import DataConfig, SourceConfig
from fmscale.config.derived import BatchShape, derive_batch, flops_per_token, num_parameters
from fmscale.config.launch import LaunchConfig
from fmscale.config.model import ModelConfig, RopeScaling
from fmscale.config.schema import Config, as_tree, as_yaml
from fmscale.config.store import StoreConfig
from fmscale.config.train import EvaluationConfig, EvaluationSet, OptimizerConfig, ScheduleConfig, TrainConfig

if TYPE_CHECKING:
    from fmscale.config.reader.load import load_config

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


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Load the reader and YAML at first use: loader and persist processes start 15 ms sooner without them."""
        if name == "load_config":
            from fmscale.config.reader.load import load_config

            return load_config
        raise AttributeError(f"module 'fmscale.config' has no attribute {name!r}")
