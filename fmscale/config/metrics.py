"""The section `metrics`: the sinks, which are the places that records of steps and events go to."""

from dataclasses import dataclass
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from fmscale.config.checks import InvalidField
from fmscale.config.kinds import Own


@dataclass(frozen=True, kw_only=True)
class JsonlConfig:
    """The file RUN FOLDER/metrics.jsonl. Every list has it: a resume, `fmscale compare` and reports read it."""

    kind: ClassVar[str] = "jsonl"


@dataclass(frozen=True, kw_only=True)
class ConsoleConfig:
    """Lines of progress on the terminal. A list without it silences them."""

    kind: ClassVar[str] = "console"


@dataclass(frozen=True, kw_only=True)
class TensorBoardConfig:
    """Event files of TensorBoard. A resumed run continues its curves; steps that it repeats replace the first ones."""

    kind: ClassVar[str] = "tensorboard"
    folder: str | None = None
    """Folder of the event files; null takes RUN FOLDER/tensorboard."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases. A resumed run goes on in the same run there; steps that it repeats are left out."""

    kind: ClassVar[str] = "wandb"
    project: str | None = None
    """Project; null takes WANDB_PROJECT, or the default of wandb."""
    entity: str | None = None
    """User or team; null takes the default of the account."""
    name: str | None = None
    """Name that is shown; null takes `train.run`."""
    mode: Literal["online", "offline", "disabled"] = "online"
    """offline writes to RUN FOLDER/wandb, from where `wandb sync` sends it."""


@dataclass(frozen=True, kw_only=True)
class MlflowConfig:
    """MLflow. A resumed run goes on in the run of RUN FOLDER/mlflow_run_id, if that is there; it logs no step twice."""

    kind: ClassVar[str] = "mlflow"
    tracking_uri: str | None = None
    """Server or folder; null takes MLFLOW_TRACKING_URI. Credentials come from MLflow's variables, never from here."""
    experiment: str = "fmscale"
    """Experiment; made at the first run."""
    name: str | None = None
    """Name that is shown; null takes `train.run`."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.tracking_uri or "")
        except ValueError as error:
            remedy = "Write a folder, or http://HOST:PORT."
            raise InvalidField("tracking_uri", f"is no URL: {error}", found=self.tracking_uri, remedy=remedy) from error
        if parts.password:
            remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI."
            raise InvalidField("tracking_uri", "has a password", found=parts.hostname, remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Places that records go to. A sink that fails is told once, and training goes on."""

    sinks: tuple[JsonlConfig | ConsoleConfig | TensorBoardConfig | WandbConfig | MlflowConfig | Own, ...] = (
        JsonlConfig(),
        ConsoleConfig(),
    )
    """The sinks."""

    def __post_init__(self) -> None:
        if not any(isinstance(sink, JsonlConfig) for sink in self.sinks):
            problem = "lacks the sink jsonl, which a resume, `fmscale compare` and reports read"
            raise InvalidField("sinks", problem, found=len(self.sinks), remedy="Add {kind: jsonl}.")
