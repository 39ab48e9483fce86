"""The section `data`: sources and their weights, the seed of the order, memory and cache of the loader."""

from dataclasses import dataclass
from typing import Literal

from fmscale.config.checks import above_zero, at_least, at_most, not_empty
from fmscale.config.kinds import Own
from fmscale.config.spec import RenderedSpec, TextSpec


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One dataset in the mixture."""

    dataset: str
    """Name of a dataset in the store."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources' weights."""
    split: str = "train"
    """Split of the dataset."""
    commits: tuple[int, ...] | None = None
    """Commits that are read; null reads all commits that are live when the run starts."""
    masks: tuple[str, ...] = ()
    """Digests of masks whose documents are left out; `fmscale dataset mask` makes a mask and prints its digest."""
    seed: int | None = None
    """Seed of this source's order; null derives it from `data.seed` and the source's place in the list."""
    spec: TextSpec | RenderedSpec | Own | None = None
    """Way from this source's records, or rows, to samples; null takes `data.spec` for records."""

    def __post_init__(self) -> None:
        not_empty("dataset", self.dataset, "`fmscale dataset list` shows the names.")
        above_zero(self, "weight", remedy="Remove the source to leave it out.")
        if self.commits is not None:
            not_empty("commits", self.commits, "Give null to read all commits.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The samples of a run. Sample number k depends on this section alone (promise P1)."""

    sources: tuple[SourceConfig, ...]
    """Datasets to mix."""
    sequence_length: int = 2048
    """Tokens in a row of the model's input."""
    packing: Literal["stream"] = "stream"
    """Way from documents to rows: `stream` cuts the running text into rows."""
    seed: int = 0
    """Seed of the order."""
    spec: TextSpec | RenderedSpec | Own | None = None
    """Way from records to samples, for sources of records that have no spec of their own."""
    window: int = 2048
    """Units that are shuffled among one another; 2048 or more mixes class-sorted data to 99 % of the
    entropy of a full shuffle, 128 to 85 %."""
    memory_bytes: int = 512 * 2**20
    """Host memory that prefetched samples of one rank may take."""
    cache_dir: str | None = None
    """Folder on a node-local disk that the node's ranks share as a cache; null uses no cache."""
    cache_bytes: int = 100 * 2**30
    """Largest size of the node's cache, over all ranks."""
    quarantine_share: float = 0.01
    """Share of a source's rows, and at least 256 rows, that may be quarantined before the run stops."""
    on_corrupt: Literal["quarantine", "stop"] = "quarantine"
    """Reaction to a chunk without an intact copy: replace its rows, record that in the order log, go on; or stop."""

    def __post_init__(self) -> None:
        not_empty("sources", self.sources, "Add `- dataset: NAME`.")
        at_least(self, 1, "sequence_length", "window")
        at_most(self, 2**32, "sequence_length", "window")
        at_least(self, 2**20, "memory_bytes", hint="One unit alone takes up to 1 MiB.")
        at_least(self, 2**20, "cache_bytes", hint="Give cache_dir: null to go without a cache.")
