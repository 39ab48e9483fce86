"""The section `store`: the place of the bytes."""

from dataclasses import dataclass

from fmscale.config.checks import at_least, not_empty


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """The store that datasets are read from and runs are written to."""

    url: str = "runs/store"
    """A folder, or a URL: s3://bucket/prefix?endpoint=...&region=..., gs://, az://, memory://name, or any URL
    that fsspec knows. Credentials come from the environment, a profile or the instance, never from the config."""
    deadline: float = 60.0
    """Seconds, retries included, after which one request counts as failed."""

    def __post_init__(self) -> None:
        not_empty("url", self.url, "Give a folder or a URL.")
        at_least(self, 1.0, "deadline")
