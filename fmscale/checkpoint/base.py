"""The base of an adapter run: another run's checkpoint, which its own checkpoints name by digest and never contain."""

from collections.abc import Mapping
from typing import Any

from fmscale.checkpoint.catalog import list_checkpoints, load_manifest
from fmscale.checkpoint.checkpoint import Checkpoint
from fmscale.checkpoint.format.names import run_log
from fmscale.errors import ConfigError, CorruptData
from fmscale.store.backends.protocol import Backend
from fmscale.store.log.retirement import pin, replay
from fmscale.store.open import open_store
from fmscale.text import scrub

BASE = "base"
"""Key of a checkpoint's meta: {address: [STORE#]RUN@STEP, digest: digest of the manifest}. Without STORE the base is in
the store of the adapter run."""


def name_base(base: Checkpoint, backend: Backend) -> dict[str, str]:
    """The entry of `meta` that names a base, for a run in the store `backend`."""
    store = "" if base.backend.url == backend.url else f"{scrub(base.backend.url)}#"
    return {"address": f"{store}{base.run}@{base.step}", "digest": base.found.body["manifest"]["digest"]}


def open_base(backend: Backend, meta: Mapping[str, Any], *, deadline: float = 60.0) -> Checkpoint:
    """The base that the meta of an adapter run in the store `backend` names. Reads no tensor.

    Raises ConfigError for a base that was removed or is another checkpoint now, CorruptData, StoreError.
    """
    try:
        address, digest = meta[BASE]["address"], meta[BASE]["digest"]
        store, _, name = address.rpartition("#")
        run, _, step = name.partition("@")
    except (KeyError, TypeError, AttributeError) as error:
        remedy = "Restore the checkpoint from a copy."
        raise CorruptData("the checkpoint names no base", found=repr(meta.get(BASE)), remedy=remedy) from error
    there = open_store(store, read_only=True, deadline=deadline) if store else backend
    entries = list_checkpoints(there, run)
    for entry in entries:
        if entry.body["manifest"]["digest"] == digest:
            return Checkpoint(there, run, entry, load_manifest(there, entry))
    same = [entry.body["manifest"]["digest"] for entry in entries if str(entry.step) == step]
    raise ConfigError(
        f"the adapter's base {address} is another checkpoint now"
        if same
        else f"the adapter's base {address} was removed",
        found=f"digest {', '.join(same)}, the adapter was trained on {digest}" if same else f"no checkpoint {digest}",
        remedy=f"Restore run {run} in {there.url} from a copy: an adapter is of use on the base that it was trained on "
        "alone.",
    )


def pin_for(run: str, backend: Backend, needed: Checkpoint, *, kind: str = "adapter") -> None:
    """Pin a checkpoint in its run's log for the run `run` of the store `backend`: an adapter needs its base, a
    preference its reference, as `kind` says. Retention keeps it from then on.

    Raises Conflict if it is retired, AccessDenied for a store that cannot be written, StoreError.
    """
    same = needed.backend.url == backend.url
    owner = f"{kind} {run}" if same else f"{kind} {scrub(backend.url)}#{run}"
    log = run_log(backend if same else open_store(needed.backend.url), needed.run)
    state = replay(log)
    if owner not in state.pins.get(needed.found.entry, ()):
        pin(log, [needed.found.entry], owner, state=state)
