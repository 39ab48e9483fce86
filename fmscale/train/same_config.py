"""All ranks were given one config: their digests meet before anything is built."""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fmscale.config import Config, as_tree
from fmscale.errors import ConfigError
from fmscale.runtime.waits import HostWaits, name_ranks
from fmscale.text import clean_tree

MAY_DIFFER = (
    "data.cache_bytes", "data.cache_dir", "data.memory_bytes", "launch.", "metrics.", "store.deadline", "train.folder",
    "train.threads",
)  # fmt: skip
"""Keys that a node may set for itself, or begins of keys: they change neither samples, steps nor collectives."""
MOST = 8
"""Configs that are told apart; a seed drawn by each of 512 ranks would else be 512 configs in one value."""


def config_digest(config: Config) -> str:
    """Digest of all keys that must not differ."""
    return hashlib.sha256(json.dumps(_keys(config), sort_keys=True, default=str).encode()).hexdigest()[:32]


def refuse_other_configs(config: Config, digests: Sequence[str], waits: HostWaits, deadline: float) -> None:
    """Raise ConfigError on all ranks if the ranks' digests differ, with the keys that do and the values of both."""
    firsts = {digest: digests.index(digest) for digest in dict.fromkeys(digests)}
    if len(firsts) == 1:
        return
    own = json.dumps([socket.gethostname(), _keys(config)], default=str)
    tells = waits.rank in list(firsts.values())[:MOST]
    told = waits.barrier("configs", value=own if tells else "", deadline=deadline)
    host, mine = json.loads(told[0])
    found, hosts = [], [f"rank 0 is on {host}"]
    for digest, first in list(firsts.items())[1:MOST]:
        place, theirs = json.loads(told[first])
        others = name_ranks([rank for rank, other in enumerate(digests) if other == digest])
        keys = [key for key in dict.fromkeys((*mine, *theirs)) if mine.get(key) != theirs.get(key)]
        found += [f"{key}: {_shown(theirs, key)} for {others}, {_shown(mine, key)} for rank 0" for key in keys]
        hosts.append(f"rank {first} is on {place}")
    raise ConfigError(
        f"the ranks were given {len(firsts)} different configs",
        found="; ".join([*found, *hosts]),
        remedy="Give all nodes the same file and overrides; only folders, caches and threads may differ.",
    )


def _keys(config: Config) -> dict[str, Any]:
    """Value of each dotted key that must not differ, without credentials."""
    tree = dict(_flat(clean_tree(as_tree(config)), ""))
    return {key: value for key, value in tree.items() if not key.startswith(MAY_DIFFER)}


def _flat(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, (list, tuple)) and any(isinstance(item, Mapping) for item in tree):
        for place, item in enumerate(tree):
            yield from _flat(item, f"{name}[{place}]")
    else:
        yield name, tree


def _shown(keys: Mapping[str, Any], key: str) -> str:
    return json.dumps(keys[key], default=str) if key in keys else "not there"
