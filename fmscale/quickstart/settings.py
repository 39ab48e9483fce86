"""Settings of a quickstart, and the places of its files."""

from dataclasses import dataclass
from pathlib import Path

from fmscale.config import Config, load_config
from fmscale.errors import ConfigError

DATASET = "corpus"
UNBROKEN_SHARE = 0.6
"""Part of the steps that the unbroken run takes: it gets past the move at little more than half the cost."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """One of the two jobs that share the training."""

    world: int
    """Ranks."""
    stage: int


@dataclass(frozen=True, kw_only=True)
class QuickstartSettings:
    """Settings of one quickstart."""

    folder: Path
    """Folder of all files; its name is the run's."""
    store: str
    """URL of the store."""
    corpus: tuple[str, ...]
    """Files and folders to train on; empty takes the standard library."""
    steps: int | None
    """Optimizer steps; None takes the config's number."""
    config: str
    """The config that is trained, such as run/quickstart."""
    device: str
    """cpu or cuda."""
    halves: tuple[Half, Half]
    """The jobs before and after the stop."""

    @property
    def run(self) -> str:
        return self.folder.name

    @property
    def log(self) -> Path:
        """Output of launcher and ranks."""
        return self.folder / "train.log"

    def overrides(self, half: Half | None = None, *, unbroken: Path | None = None) -> list[str]:
        """Overrides of the config, as for `fmscale train`. `unbroken` is the folder of a run without a stop: that run
        begins anew and saves only at its end.
        """
        folder = unbroken or self.folder
        values = [
            f"store.url={self.store}",
            f"train.folder={folder.parent}",
            f"train.run={folder.name}",
            f"train.device={self.device}",
            f"data.sources.0.dataset={DATASET}",
        ]
        if self.steps is not None:
            values += [f"train.steps={self.steps}", f"checkpoint.every={max(1, self.steps // 6)}"]
        if unbroken is not None:
            values += ["checkpoint.every=null", "train.resume=never"]
        if half is not None:
            values.append(f"train.zero_stage={half.stage}")
            # A single rank on a CPU takes a second core, which no other rank uses.
            if half.world == 1 and self.device == "cpu":
                values += ["train.threads=2", "launch.environment.OMP_WAIT_POLICY=PASSIVE"]
        return values

    def load(self, half: Half | None = None) -> Config:
        """The config as the ranks get it."""
        return load_config(self.config, self.overrides(half))


def choose(
    *, folder: Path, store: str | None, corpus: tuple[str, ...], steps: int | None, gpus: int
) -> QuickstartSettings:
    """The settings on a machine with this many GPUs.

    On a CPU two ranks at stage 2, then one rank at stage 3. With GPUs a rank for each, then half as many ranks; a
    single GPU has one rank both times. Raises ConfigError for a folder that cannot name a run, or too few steps to
    stop half-way.
    """
    if steps is not None and steps < 8:
        raise ConfigError(
            "a quickstart of so few steps cannot be stopped half-way", found=steps, remedy="Give --steps 8 or more."
        )
    world = gpus or 2
    return QuickstartSettings(
        # A relative path stays relative: a run whose folder is moved then still finds its files.
        folder=folder if folder.name else folder.absolute(),
        store=store or str(folder / "store"),
        corpus=corpus,
        steps=steps,
        config="run/quickstart-gpu" if gpus else "run/quickstart",
        device="cuda" if gpus else "cpu",
        halves=(Half(world=world, stage=2), Half(world=max(1, world // 2), stage=3)),
    )


def count_gpus() -> int:
    """GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
