"""The config of a run: one dataclass for each section, read strictly from YAML. Imports no torch.

`schema.py`      the whole config, and its plain values or YAML
`store.py`, `data.py`, `batch.py`, `model.py`, `adapter.py`, `objective.py`, `train.py`,
`spike.py`, `checkpoint.py`, `metrics.py`, `launch.py`  the sections
`spec.py`        specs, which make samples of records
`kinds.py`       the key `kind`, and classes of the user's own
`checks.py`      refusal of a field's value, and of several
`derived.py`     batch, parameters and FLOPs, which follow from a config
`peaks.py`       peak FLOP/s of devices
`reader/`        from YAML to the dataclasses, and the config's reference for people and editors
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmscale.config.adapter import LoraConfig
    from fmscale.config.batch import BatchConfig
    from fmscale.config.checkpoint import CheckpointConfig
    from fmscale.config.data import DataConfig, SourceConfig
    from fmscale.config.derived import BatchShape, derive_batch, flops_per_token, num_parameters
    from fmscale.config.kinds import Own, kind_of
    from fmscale.config.launch import LaunchConfig
    from fmscale.config.metrics import MetricsConfig
    from fmscale.config.model import ModelConfig, RopeScaling
    from fmscale.config.objective import NextTokenConfig
    from fmscale.config.reader.load import load_config
    from fmscale.config.schema import Config, as_tree, as_yaml
    from fmscale.config.spec import RenderedSpec, TextSpec
    from fmscale.config.store import StoreConfig
    from fmscale.config.train import EvaluationConfig, EvaluationSet, OptimizerConfig, ScheduleConfig, TrainConfig

__all__ = [
    "BatchConfig", "BatchShape", "CheckpointConfig", "Config", "DataConfig", "EvaluationConfig", "EvaluationSet",
    "LaunchConfig", "LoraConfig", "MetricsConfig", "ModelConfig", "NextTokenConfig", "OptimizerConfig", "Own",
    "RenderedSpec",
    "RopeScaling", "ScheduleConfig", "SourceConfig", "StoreConfig", "TextSpec", "TrainConfig", "as_tree", "as_yaml",
    "derive_batch", "flops_per_token", "kind_of", "load_config", "num_parameters",
]  # fmt: skip

_HOMES = {
    "adapter": ("LoraConfig",),
    "batch": ("BatchConfig",),
    "checkpoint": ("CheckpointConfig",),
    "data": ("DataConfig", "SourceConfig"),
    "derived": ("BatchShape", "derive_batch", "flops_per_token", "num_parameters"),
    "kinds": ("Own", "kind_of"),
    "launch": ("LaunchConfig",),
    "metrics": ("MetricsConfig",),
    "model": ("ModelConfig", "RopeScaling"),
    "objective": ("NextTokenConfig",),
    "reader.load": ("load_config",),
    "schema": ("Config", "as_tree", "as_yaml"),
    "spec": ("RenderedSpec", "TextSpec"),
    "store": ("StoreConfig",),
    "train": ("EvaluationConfig", "EvaluationSet", "OptimizerConfig", "ScheduleConfig", "TrainConfig"),
}
"""Module -> its public names; the imports above say the same to type checkers."""


if not TYPE_CHECKING:  # a type checker would take any name for one that is here

    def __getattr__(name: str) -> Any:
        """Load a public name at its first use (PEP 562): a loader needs one section and no YAML."""
        for module, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"fmscale.config.{module}"), name)
                return value
        raise AttributeError(f"module 'fmscale.config' has no attribute {name!r}")
