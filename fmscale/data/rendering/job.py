"""Renders a dataset of messages into a dataset of tokens: a commit for each commit of the source.

Units are segments of the source, done by processes and recorded one by one, so that a job that was killed goes on when
it runs again; then one commit makes them visible, and the column of sizes is derived. A later call adds the source's
new commits.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fmscale.config.spec import RenderedSpec
from fmscale.data.chat.render import Policy
from fmscale.data.ingest.record import SkippedInput, finished_units, record_key
from fmscale.data.rendering.unit import UnitRenderer
from fmscale.data.samples.derive import derive_sizes
from fmscale.data.samples.specs import make_spec
from fmscale.data.views.mask import Documents, find_documents, load_mask, make_mask
from fmscale.data.workers.messages import Message
from fmscale.data.workers.pool import Progress, UnitWork, most_workers, share_units
from fmscale.errors import DataError
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset, create_or_open, open_dataset
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.doctor.probe import require_writable
from fmscale.store.open import open_store
from fmscale.store.segments.seal import SealInfo

VERSION = 1
"""Version of the rendering: it changes with every change of a token or of a trained span."""


def render_notes(commit: Commit) -> Mapping[str, Any] | None:
    """The notes of a rendered commit: `template` and `tokenizer` (digests), `shape`, `maker`, `counts`, `left_out`,
    and `commit`, the source's; None for another commit.
    """
    notes: Mapping[str, Any] | None = commit.body["extra"].get("render")
    return notes


def render_dataset(
    store: str,
    source: str,
    target: str,
    *,
    tokenizer: str,
    template: str | None,
    bos: int | None,
    eos: int | None,
    policy: Policy,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> list[Commit]:
    """Render the commits of `source` that `target` lacks, and return the new commits; `tokenizer` and `template` are
    digests on the store.

    Raises DataError for a source without messages, for a target that is something else or was rendered in another way,
    and if every record is left out; TemplateFault, RankError, and the errors of the store.
    """
    most = most_workers(workers, [store], "workers")
    backend = open_store(store)
    commits = open_dataset(backend, source).commits()
    shapes = {commit.body["extra"].get("ingest", {}).get("shape") for commit in commits}
    shape = next(iter(shapes), None)
    if shape is None:
        raise DataError(
            f"Dataset {source} holds no messages",
            found=commits[-1].kind if commits else "no live commit",
            remedy="`fmscale ingest FILE --as chat` makes them; so do completion, preference, ranking and prompts.",
        )
    maker = {
        "version": VERSION,
        "source": source,
        "shape": shape,
        "template": template,
        "tokenizer": tokenizer,
        "bos": bos,
        "eos": eos,
        "policy": asdict(policy),
    }
    require_writable(backend)
    opened = create_or_open(backend, target)
    done = _done(opened, maker)
    made = [
        _render_commit(store, opened, source, commit, maker, most, progress)
        for commit in commits
        if commit.digest not in done
    ]
    for split in sorted({split for commit in opened.commits() for split in commit.totals}):
        _mask_as(open_dataset(backend, source), opened, split)
        derive_sizes(store, target, split, make_spec(RenderedSpec(), backend, limit=2**31), workers=workers)
    return made


def _done(target: Dataset, maker: Mapping[str, Any]) -> set[str]:
    """Digests of the source's commits that the target has. Raises DataError if it was made otherwise."""
    done = set()
    for commit in target.commits():
        notes = render_notes(commit)
        theirs = notes["maker"] if notes else {}
        differ = {key: (theirs.get(key), value) for key, value in maker.items() if theirs.get(key) != value}
        if not notes or differ:
            there = "; ".join(f"{key}: {old} there, {new} here" for key, (old, new) in differ.items())
            raise DataError(
                f"Dataset {target.name} was rendered in another way"
                if notes
                else f"Dataset {target.name} is no rendering",
                found=there if notes else f"commit {commit.number}",
                remedy="Give the rendering a name of its own: --to NAME. A rendering is never edited.",
            )
        done.add(notes["commit"])
    return done


def _mask_as(source: Dataset, target: Dataset, split: str) -> None:
    """Mask what the source has masked since it was rendered, such as the earlier versions of replaced files."""
    numbers = {notes["commit"]: commit.number for commit in target.commits() if (notes := render_notes(commit))}
    gone: dict[int, set[bytes]] = {}
    for digest in source.masks(split):
        mask = load_mask(source.backend, source.name, digest).documents
        for number, name in zip(mask.commit.tolist(), mask.id, strict=True):
            gone.setdefault(number, set()).add(name.tobytes())
    parts = [
        find_documents(target, split=split, commits=[numbers[commit.digest]], ids=gone[commit.number], partial=True)
        for commit in source.commits()
        if commit.number in gone and commit.digest in numbers
    ]
    if parts and sum(len(part.id) for part in parts):
        mask_digest = make_mask(target, Documents._make(map(np.concatenate, zip(*parts, strict=True))), split=split)
        if mask_digest not in target.masks(split):
            target.append_masks({split: mask_digest}, f"masked in {source.name}")


def _render_commit(
    store: str,
    target: Dataset,
    source: str,
    commit: Commit,
    maker: Mapping[str, Any],
    most: int,
    progress: Progress,
) -> Commit:
    job = metadata_digest(canonical_json({"commit": commit.digest, "maker": maker}))
    target.check_open(job)
    task: Message = {"store": store, "source": source, "commit": commit.number, "target": target.name}
    task |= {"job": job, "maker": maker}
    renderer = UnitRenderer(**task)
    finished = finished_units(target.backend, target.name, job)
    pending = [unit for unit in range(len(renderer.rows)) if unit not in finished]
    work = UnitWork(
        name="render",
        module="fmscale.data.rendering.unit",
        task=task,
        units=pending,
        describe=lambda unit: renderer.rows[unit][1].prefix,
    )
    total = sum(row.documents for _, row in renderer.rows)
    done = total - sum(renderer.rows[unit][1].documents for unit in pending)
    share_units(work, most, renderer.run, total=total, done=done, progress=progress)
    left_out, counts = SkippedInput(), Counter[str]()
    segments: dict[str, list[tuple[int, SealInfo]]] = {}
    for unit in range(len(renderer.rows)):
        outcome = json.loads(target.backend.get(record_key(target.name, job, unit)))
        left_out.merge(outcome["left_out"])
        counts.update(outcome["counts"])
        if outcome["seal"]:
            segments.setdefault(outcome["split"], []).append((unit, SealInfo(**outcome["seal"])))
    if not segments:
        raise DataError(
            f"No record of dataset {source} can be rendered",
            found=left_out.counted(),
            remedy="Mend the records or the template. Nothing was committed.",
        )
    notes = {name: maker[name] for name in ("template", "tokenizer", "shape")}
    notes |= {"commit": commit.digest, "maker": maker, "counts": counts, "left_out": left_out}
    return target.append_commit(
        job=job,
        segments=segments,
        kind="records",
        tokenizer=maker["tokenizer"],
        dtype="",
        bos=maker["bos"],
        eos=renderer.end,
        extra={"render": notes},
    )
