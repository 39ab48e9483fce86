"""The whole config: a field for each section. A new section is a file with its dataclass and a line here."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

import yaml

from fmscale.config.batch import BatchConfig
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.config.data import DataConfig
from fmscale.config.launch import LaunchConfig
from fmscale.config.model import ModelConfig
from fmscale.config.store import StoreConfig
from fmscale.config.train import EvaluationConfig, OptimizerConfig, ScheduleConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    store: StoreConfig = field(default_factory=StoreConfig)
    """Place of the bytes."""
    data: DataConfig
    """Samples and their order."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Rows of a step and how ranks share them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model that is trained."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, precision and sharding of the run."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saves and their retention."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Held-out losses while training."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Start of the ranks."""
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False, metadata={"read": False})
    """file:line of each dotted key that was read; for errors found later."""

    def place(self, name: str) -> str:
        """File, line and name of the dotted key `name`, as the begin of an error; the name alone if no file set it."""
        return f"{self.places[name]}: {name}" if name in self.places else name


def settable(kind: Any) -> list[Field[Any]]:
    """Fields of a config or section that a file may set."""
    return [field for field in fields(kind) if field.metadata.get("read", True)]


def as_tree(config: Any) -> Any:
    """A config or section as plain dicts, lists and values, as YAML or JSON would hold it."""
    if is_dataclass(config):
        return {field.name: as_tree(getattr(config, field.name)) for field in settable(config)}
    if isinstance(config, (tuple, list)):
        return [as_tree(item) for item in config]
    if isinstance(config, Mapping):
        return {key: as_tree(value) for key, value in config.items()}
    return config


LINE_BREAKS = frozenset("\x85\u2028\u2029")
"""Line breaks of Unicode: PyYAML writes them unchanged, and reads them as a space or a fold."""


def as_yaml(config: Any) -> str:
    """A config or section as YAML that reads back equal."""
    text = yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True)
    if LINE_BREAKS.isdisjoint(text):
        return text
    return yaml.safe_dump(as_tree(config), sort_keys=False)
