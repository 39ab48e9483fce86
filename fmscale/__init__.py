"""fmscale: train foundation models on many GPUs and never let them wait for data.

Most users need only the names below, each of which is loaded at its first use; docs/api.md has the other names. The
packages in reading order, which is the order of imports, from the lowest layer up:

`text.py`     texts for people, without credentials and control characters
`errors.py`   errors with cause, value and remedy
`config/`     a dataclass for each section, and the strict reader of YAML
`runtime/`    ranks, waits, stop signals, the first failure, sinks
`store/`      bytes: backends, log, segments, datasets, node cache
`data/`       samples: ingest, order, views, plans, the loader, its audit
`checkpoint/` state: snapshot, persist, read, export
`models/`     plain modules
`objectives/` from inputs and a model to a loss
`exchange/`   imports and exports of whole models
`infer/`      generation and evaluation
`train/`      the engine, the step, the loop
`report/`     pages of HTML from plain values
`quickstart/` from text to a report, by the names that users call
`cli/`        the command line, one file for each verb
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmscale.checkpoint.catalog import list_checkpoints
    from fmscale.checkpoint.checkpoint import open_checkpoint
    from fmscale.config import Config, load_config
    from fmscale.data.ingest import ingest
    from fmscale.data.open import open_loader
    from fmscale.data.torch_dataset import TokenDataset
    from fmscale.errors import FmscaleError
    from fmscale.infer import Sampling, evaluate, generate
    from fmscale.infer.load import open_trained
    from fmscale.store.datasets.dataset import list_datasets, open_dataset
    from fmscale.store.open import open_store
    from fmscale.train.run import run_training

    __version__: str

__all__ = [
    "Config",
    "FmscaleError",
    "Sampling",
    "TokenDataset",
    "evaluate",
    "generate",
    "ingest",
    "list_checkpoints",
    "list_datasets",
    "load_config",
    "open_checkpoint",
    "open_dataset",
    "open_loader",
    "open_store",
    "open_trained",
    "run_training",
]

_HOMES = {
    "checkpoint.catalog": ("list_checkpoints",),
    "checkpoint.checkpoint": ("open_checkpoint",),
    "config": ("Config", "load_config"),
    "data.ingest": ("ingest",),
    "data.open": ("open_loader",),
    "data.torch_dataset": ("TokenDataset",),
    "errors": ("FmscaleError",),
    "infer": ("Sampling", "evaluate", "generate"),
    "infer.load": ("open_trained",),
    "store.datasets.dataset": ("list_datasets", "open_dataset"),
    "store.open": ("open_store",),
    "train.run": ("run_training",),
}
"""Module -> its public names; the imports above say the same to type checkers."""

# In a bare checkout `kernels/` and `launch/` lie beside this package; installed, under it.
# This lets `python -m benchmarks.kernels` run where only torch and triton are installed, from a checkout.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "kernels").is_dir():
    __path__.append(str(_checkout))


if not TYPE_CHECKING:  # with this function a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """Load a public name at its first use (PEP 562)."""
        if name == "__version__":
            from importlib.metadata import version

            return version("fmscale")
        for module, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"fmscale.{module}"), name)
                return value
        raise AttributeError(f"module 'fmscale' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
