"""Damage under right digests: stored entries with other content, in a log whose chain fits."""

import json
from collections.abc import Callable
from typing import Any

from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import canonical_json, metadata_digest


def forge(store: Backend, prefix: str, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the fields of a log's entry, and give it and the entries behind it right digests again."""
    previous = None
    for key in [info.key for info in store.list_objects(f"{prefix}/log")][number:]:
        fields = json.loads(store.get(key))
        if previous is None:
            change(fields)
        else:
            fields["previous"] = previous
        del fields["digest"]
        fields["digest"] = previous = metadata_digest(canonical_json(fields))
        store.put(key, canonical_json(fields))


def as_version_1(fields: dict[str, Any]) -> None:
    """Make of an entry what fmscale wrote before entries named their log."""
    del fields["log"]
    fields["format_version"] = 1
