"""Names on the command line: STORE/DATASET, STORE#RUN[@STEP], or options; and config keys as KEY=VALUE."""

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from fmscale.errors import ConfigError

MOST_STEPS = 2**31
"""Largest number of steps or rows in an option: their product is a sample, a number of 64 bits."""

StoreOption = Annotated[
    str | None, typer.Option("--store", help="The store: a directory or a URL (s3://, gs://, ...).")
]
DatasetOption = Annotated[str | None, typer.Option("--dataset", help="Name of the dataset in --store.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Name of the run in --store.")]
StoreArgument = Annotated[
    str | None, typer.Argument(metavar="STORE", help="A store: a directory or a URL; or give --store.")
]
DatasetArgument = Annotated[
    str | None, typer.Argument(metavar="STORE/DATASET", help="A dataset of a store; or give --store and --dataset.")
]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        metavar="STORE#RUN[@STEP]", help="A store, a run in it, and a step; the newest checkpoint by default."
    ),
]
ConfigArgument = Annotated[str, typer.Argument(help="A YAML file, or the name of one that fmscale ships.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as train.steps=100.")]


def find_store(address: str | None, store: str | None) -> str:
    """The store that the argument or --store names. Raises ConfigError if both or neither are given."""
    return _only(address, store, "STORE, or --store STORE")


def find_dataset(address: str | None, store: str | None, dataset: str | None) -> tuple[str, str]:
    """(store, dataset) from the argument, from --dataset STORE/DATASET, or from both options. Raises ConfigError."""
    remedy = "STORE/DATASET, such as runs/store/docs, or --store STORE --dataset DATASET"
    if store is not None and dataset is not None:
        _only(address, store, remedy)
        return store, dataset
    text = _only(address, store or dataset, remedy)
    place, mark, query = text.partition("?")
    url, slash, name = place.rstrip("/").rpartition("/")
    if store is not None or not slash or not name or url.endswith(":/") or not url:
        raise ConfigError("not the address of a dataset", found=text, remedy=f"Write {remedy}.")
    return url + mark + query, name


def find_run(address: str | None, store: str | None, run: str | None) -> tuple[str, str, int | None]:
    """(store, run, step or None) from the argument, --run STORE#RUN[@STEP], or both options. Raises ConfigError."""
    from fmscale.checkpoint.catalog import parse_address

    remedy = "STORE#RUN, such as runs/store#demo, or --store STORE --run RUN"
    if store is not None and run is not None:
        _only(address, store, remedy)
        return store, run, None
    text = _only(address, store or run, remedy)
    if store is not None:
        raise ConfigError("not the address of a run", found=text, remedy=f"Write {remedy}.")
    url, name, step = parse_address(text)
    if step != "auto" and not (step.isdecimal() and len(step) < 20 and 0 < int(step) <= MOST_STEPS):
        raise ConfigError("not a step of a run", found=step, remedy="Write STORE#RUN@STEP with a number, or STORE#RUN.")
    return url, name, None if step == "auto" else int(step)


def _only(address: str | None, option: str | None, remedy: str) -> str:
    if address is not None and option is not None:
        raise ConfigError(
            "told twice, by an argument and by options", found=f"{address}, {option}", remedy=f"Give {remedy}."
        )
    value = address if option is None else option
    if value is None:
        raise ConfigError("it is not told where to look", remedy=f"Give {remedy}.")
    return value


class ConfigCommand(TyperCommand):
    """A command that takes KEY=VALUE. An option with a config key's name is refused with the way to set that key."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises ConfigError for an option with a config key's name, click's error for other unknown options."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Compared by name, as typer has click's errors in a module of its own since 0.2x.
            if type(error).__name__ == "NoSuchOption":
                _refuse_key(str(getattr(error, "option_name", "")), words)
            raise


def _refuse_key(option: str, words: list[str]) -> None:
    """Raises ConfigError if `option`, a part of `words`, is a config key or the end of a config key."""
    from fmscale.config import Config
    from fmscale.config.reader.refusals import dotted_names

    name = option.lstrip("-").replace("-", "_")
    keys = [key for key in dotted_names(Config) if key == name or key.endswith(f".{name}")]
    if not keys:
        return
    argument = next(word for word in words if word.split("=")[0] == option)
    next_word = [*words[words.index(argument) + 1 :], "--"][0]
    value = argument.partition("=")[2] or ("VALUE" if next_word.startswith("--") else next_word)
    ways = " or ".join(f"{key}={value}" for key in keys)
    raise ConfigError("config keys are set as KEY=VALUE, not as options", found=option, remedy=f"Write {ways}.")
