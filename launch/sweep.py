"""A sweep: the product of values of config keys, and for each combination a run of its own name."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fmscale.errors import ConfigError

MOST = 1000
"""Slurm's arrays have at most 1001 elements by default."""
FORM = "Write --sweep KEY=VALUE,VALUE,... with a key of the config, such as --sweep optimizer.lr=1e-3,3e-4."


@dataclass(frozen=True, kw_only=True)
class Element:
    """One run of a sweep."""

    run: str
    """Name of the run, made of the base run's name and the values."""
    values: Mapping[str, str]
    """Value of each swept key, as given."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """The values and the name as overrides of the config."""
        return (*(f"{key}={value}" for key, value in self.values.items()), f"train.run={self.run}")


def read_sweep(sweeps: Sequence[str], run: str) -> tuple[Element, ...]:
    """All combinations of "key=a,b" texts; the last key's values change fastest. `run`: name of the config's run.

    Raises ConfigError for a text without key or values, a key given twice or not meant for sweeps, two runs of one
    name, or more than MOST runs. The config's reader refuses unknown keys.
    """
    choices = dict[str, list[str]]()
    for text in sweeps:
        key, _, values = text.partition("=")
        key = key.strip()
        parts = [part.strip() for part in split_values(values)]
        if not key or not all(parts) or re.search(r"[\t\n]", text):
            raise ConfigError("A sweep needs a key and its values", found=text, remedy=FORM)
        if key in choices:
            raise ConfigError(f"{key} is swept twice", found=text, remedy="Give all its values in one --sweep.")
        if key == "train.run" or key.split(".")[0] == "launch":
            remedy = "Sweep another key: each run gets a name of its values, and all are launched in the same way."
            raise ConfigError(f"{key} cannot be swept", found=text, remedy=remedy)
        choices[key] = parts
    if not choices:
        return ()
    last = [key.rpartition(".")[2] for key in choices]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(choices, last, strict=True)}
    elements = dict[str, Element]()
    for combination in itertools.product(*choices.values()):
        chosen = dict(zip(choices, combination, strict=True))
        words = (re.sub(r"[^\w.+-]+", "_", f"{short[key]}-{value}").strip("_") for key, value in chosen.items())
        element = Element(run="-".join((run, *words)), values=chosen)
        if element.run in elements:
            found = f"{element.run}: {dict(elements[element.run].values)} and {chosen}"
            raise ConfigError("Two runs of the sweep would have one name", found=found, remedy="Give each value once.")
        elements[element.run] = element
        if len(elements) > MOST:
            raise ConfigError(f"A sweep has at most {MOST} runs", remedy="Sweep fewer keys, or fewer values of each.")
    return tuple(elements.values())


def split_values(text: str) -> list[str]:
    """Parts of "a,[b,c],'d,e'" between the commas that stand outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
