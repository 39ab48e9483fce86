"""Restore at any number of ranks: each rank reads the bytes of its own pieces from the files that hold them."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial as bound
from typing import Any

import numpy as np
import torch

from fmscale.checkpoint.catalog import CheckpointEntry, list_checkpoints, load_manifest, pick, warn_of_newer
from fmscale.checkpoint.format.layout import Tensor, checked
from fmscale.checkpoint.format.manifest import CheckpointManifest
from fmscale.checkpoint.format.piece import Piece
from fmscale.checkpoint.read.agree import RankVote
from fmscale.checkpoint.read.compatibility import differences, refuse_other_model
from fmscale.checkpoint.read.reader import ByteRequest, Put, Reader
from fmscale.errors import CorruptData
from fmscale.runtime.stop import StopFlag
from fmscale.runtime.waits import HostWaits
from fmscale.store.backends.protocol import Backend
from fmscale.store.digest import CHUNK_BYTES
from fmscale.store.tiers.tier import Tier, Tiers, TierUse

logger = logging.getLogger(__name__)

WAIT = "restore"
"""Name of the ranks' waits."""


@dataclass(frozen=True, kw_only=True)
class RejectedCheckpoint:
    """A newer checkpoint that was not valid."""

    step: int
    entry: int
    reason: str
    """The damage, and the rank that found it."""


@dataclass(frozen=True, kw_only=True)
class RestoreResult:
    """Outcome of a restore, besides the tensors."""

    step: int
    entry: int
    """Log entry of the checkpoint."""
    meta: dict[str, Any]
    """Values that were saved with the tensors."""
    rank_meta: list[dict[str, Any] | None]
    """Values of each rank, by rank of the world that saved it."""
    passed_over: tuple[RejectedCheckpoint, ...]
    """Newer checkpoints that are damaged."""
    bytes_read: int
    """Bytes of files that this rank read."""
    bytes_needed: int
    """Bytes of this rank's pieces."""
    verified: bool
    """True if the ranks together read every byte of the checkpoint's files from the store and found no damage."""
    tiers: tuple[TierUse, ...]
    """Chunks that this rank had from each tier; the store served all others."""
    marked: bool
    """True if the checkpoint was already marked as verified."""


def restore(
    backend: Backend,
    run: str,
    pieces: Sequence[Piece],
    *,
    which: int | str = "auto",
    waits: HostWaits | None = None,
    partial: bool = False,
    weights: bool = False,
    convert: bool = False,
    deadline: float = 3600.0,
    stop: StopFlag | None = None,
    tiers: Sequence[Tier] = (),
) -> RestoreResult | None:
    """Fill the live tensors of `pieces` from the newest checkpoint that all ranks find valid.

    All ranks of a run call it, each with the pieces that it needs, which may overlap. The ranks agree through
    `waits`, which heed `stop`; a single process passes None. `which` is `auto`, a step, or `entryN` (see
    `catalog.pick`). With `partial` the pieces need not cover the checkpoint, with `weights` only its weights. `convert`
    converts weights of another floating type: a frozen tensor has the type in which its run computes. `tiers` are asked
    for chunks of 64 KiB before the store. Returns None if the run has no checkpoint and `which` is auto.

    Raises ConfigError for a checkpoint of another model, with the tensors that differ, or if no checkpoint matches
    `which`; CorruptData if no checkpoint is valid; StoreError where the store fails; RankError for another rank's
    failure. After an error the tensors' content is undefined.
    """
    ranks = RankVote(waits, WAIT, deadline, stop)
    candidates = [CheckpointEntry(**row) for row in json.loads(ranks.first(lambda: _candidates(backend, run, which)))]
    asked = [checked(piece).tensor for piece in pieces]
    passed: list[RejectedCheckpoint] = []
    sources = Tiers(tiers)
    for candidate in candidates:
        where = f"step {candidate.step} (entry {candidate.entry}) of run {run}"
        opened: list[CheckpointManifest] = []
        answers, problem = ranks.all_find(bound(_compare, backend, candidate, asked, convert, opened))
        if not problem:
            [manifest] = opened
            refuse_other_model(manifest, answers, where, partial=partial, weights=weights)
            reader = Reader(backend, manifest, sources)
            seen, problem = ranks.all_find(bound(_fill, reader, pieces))
        if problem:
            logger.warning("%s is passed over: %s", where, problem)
            passed.append(RejectedCheckpoint(step=candidate.step, entry=candidate.entry, reason=problem))
            continue
        return RestoreResult(
            verified=_all_checked(manifest, seen),
            marked=candidate.verified,
            step=candidate.step,
            entry=candidate.entry,
            meta=manifest.meta,
            rank_meta=manifest.rank_meta,
            passed_over=tuple(passed),
            bytes_read=reader.bytes_read,
            bytes_needed=reader.bytes_needed,
            tiers=sources.uses,
        )
    if passed:
        raise CorruptData(
            f"no checkpoint of run {run} is valid on all ranks",
            found="; ".join(f"step {checkpoint.step}: {checkpoint.reason}" for checkpoint in passed[:5]),
            remedy="`fmscale checkpoint verify` names the damage; restore the store from a copy, or begin anew.",
        )
    return None


def _candidates(backend: Backend, run: str, which: int | str) -> str:
    """Candidates of `pick` as JSON."""
    checkpoints = list_checkpoints(backend, run)
    warn_of_newer(backend, run, checkpoints)
    if not checkpoints and which == "auto":
        return "[]"
    return json.dumps([asdict(checkpoint) for checkpoint in pick(checkpoints, which, f"run {run}")])


def _compare(
    backend: Backend, candidate: CheckpointEntry, asked: list[Tensor], convert: bool, opened: list[CheckpointManifest]
) -> str:
    """Open the manifest into `opened`; the differences between its tensors and those that this rank needs."""
    opened.append(load_manifest(backend, candidate))
    return differences(opened[0], asked, convert=convert)


def _runs(checked: dict[int, np.ndarray]) -> dict[int, list[list[int]]]:
    """Runs [first, stop) of checked chunks, by file."""
    runs = {}
    for file, seen in checked.items():
        edges = np.flatnonzero(np.diff(np.concatenate([[False], seen, [False]]).astype(np.int8)))
        runs[file] = edges.reshape(-1, 2).tolist()
    return runs


def _all_checked(manifest: CheckpointManifest, answers: Sequence[str]) -> bool:
    """True if all ranks' runs together cover every chunk of every file."""
    sizes = [-(-file.bytes // CHUNK_BYTES) for file in manifest.files]
    seen = [np.zeros(size, dtype=bool) for size in sizes]
    for answer in answers:
        for file, runs in json.loads(answer).items():
            for first, stop in runs:
                seen[int(file)][first:stop] = True
    return all(bool(chunks.all()) for chunks in seen)


def _fill(reader: Reader, pieces: Sequence[Piece]) -> str:
    """Read every piece into its tensor; the runs of the chunks that were checked, as JSON."""
    requests: list[ByteRequest] = []
    for piece in pieces:
        tensor = reader.manifest.number[piece.name, piece.state]
        put = into(piece.tensor, reader.manifest.tensors[tensor].dtype)
        requests += reader.requests(tensor, piece.start, piece.count, put)
    reader.read(requests)
    return json.dumps(_runs(reader.checked))


def into(tensor: torch.Tensor, stored: str = "") -> Put:
    """A `Put` that writes bytes into a contiguous 1-D tensor on any device; bytes of another type `stored` are
    converted.
    """
    if stored and (kind := getattr(torch, stored)) != tensor.dtype:
        # An element is aligned to its size in its file, so that no chunk cuts it.
        return lambda at, data: _convert(torch.frombuffer(data, dtype=kind), tensor.detach()[at // kind.itemsize :])
    target = tensor.detach().view(torch.uint8)
    host = None if target.is_cuda else target.numpy()

    def put(at: int, data: memoryview) -> None:
        source = np.frombuffer(data, dtype=np.uint8)
        if host is not None:
            host[at : at + len(source)] = source
        else:
            target[at : at + len(source)].copy_(torch.from_numpy(source))

    return put


def _convert(source: torch.Tensor, target: torch.Tensor) -> None:
    target[: len(source)].copy_(source)
