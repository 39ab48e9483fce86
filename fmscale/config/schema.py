"""The whole config: a field for each section. A new section is a file with its dataclass and a line here."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import yaml

from fmscale.config.adapter import LoraConfig
from fmscale.config.batch import BatchConfig
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.config.data import DataConfig
from fmscale.config.kinds import Own, kind_of, tag
from fmscale.config.launch import LaunchConfig
from fmscale.config.metrics import MetricsConfig
from fmscale.config.model import InitModelConfig, ModelConfig
from fmscale.config.objective import NextTokenConfig, ObjectiveConfig
from fmscale.config.spike import SpikeConfig
from fmscale.config.store import StoreConfig
from fmscale.config.train import EvaluationConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from fmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run."""

    store: StoreConfig = field(default_factory=StoreConfig)
    """Place of the bytes."""
    data: DataConfig
    """Samples and their order."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Rows of a step and how ranks share them."""
    model: ModelConfig | InitModelConfig | Own = field(default_factory=ModelConfig)
    """The model that is trained."""
    adapter: LoraConfig | None = None
    """Adapter that is trained in place of the model's weights; null trains all weights."""
    objective: ObjectiveConfig | Own = field(default_factory=NextTokenConfig)
    """The loss that training minimises."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, precision and sharding of the run."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    """Reaction to loss spikes."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saves and their retention."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Held-out losses while training."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """Places that the records of steps and events go to."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Start of the ranks."""
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False, metadata={"read": False})
    """file:line of each dotted key that was read; for errors found later."""

    def place(self, name: str) -> str:
        """File, line and name of the dotted key `name`, as the begin of an error; the name alone if no file set it."""
        return f"{self.places[name]}: {name}" if name in self.places else name

    def decoder(self, work: str) -> ModelConfig:
        """The section `model`, for `work` that only our decoder can do. Raises ConfigError for any other model."""
        if type(self.model) is ModelConfig:
            return self.model
        raise ConfigError(
            f"{self.place('model')}: {work} needs a model of kind {ModelConfig.kind}",
            found=kind_of(self.model),
            remedy=f"Take model.kind: {ModelConfig.kind}.",
        )


def settable(kind: Any) -> list[Field[Any]]:
    """Fields of a config or section that a file may set."""
    return [field for field in fields(kind) if field.init and field.metadata.get("read", True)]


def as_tree(config: Any, hint: Any = None) -> Any:
    """A config or section as plain dicts, lists and values, as YAML or JSON would hold it. `hint`: type of the field
    that holds it; a section whose class follows from its kind begins with `kind`.
    """
    if is_dataclass(config):
        hints = get_type_hints(type(config))
        named = tag(type(config)) is not None or _mentions_own(hint)
        keys = {field.name: as_tree(getattr(config, field.name), hints[field.name]) for field in settable(config)}
        return {"kind": kind_of(config), **keys} if named else keys
    if isinstance(config, (tuple, list)):
        return [as_tree(item, hint) for item in config]
    if isinstance(config, Mapping):
        return {key: as_tree(value, hint) for key, value in config.items()}
    return config


def _mentions_own(hint: Any) -> bool:
    return hint is Own or any(map(_mentions_own, get_args(hint)))


LINE_BREAKS = frozenset("\x85\u2028\u2029")
"""Line breaks of Unicode: PyYAML writes them unchanged, and reads them as a space or a fold."""


def as_yaml(config: Any) -> str:
    """A config or section as YAML that reads back equal."""
    text = yaml.safe_dump(as_tree(config), sort_keys=False, allow_unicode=True)
    return text if LINE_BREAKS.isdisjoint(text) else yaml.safe_dump(as_tree(config), sort_keys=False)
