"""Renders a dataset of messages into a dataset of tokens: a commit for each commit of the source.

Units are segments of the source, done by processes and recorded one by one, so that a job that was killed goes on when
it runs again; then one commit makes them visible, and the column of sizes is derived. A later call adds the source's
new commits.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fmscale.config.spec import RenderedSpec
from fmscale.data.chat.render import Policy
from fmscale.data.ingest.record import SkippedInput, finished_units, record_key
from fmscale.data.rendering.unit import UnitOutcome, UnitRenderer, decode_outcome, seal_of
from fmscale.data.samples.derive import derive_sizes
from fmscale.data.samples.specs import make_spec
from fmscale.data.workers.messages import Message
from fmscale.data.workers.pool import UnitWork, most_workers, run_units
from fmscale.errors import DataError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset, create_or_open, open_dataset
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.doctor.probe import require_writable
from fmscale.store.open import open_store

VERSION = 1
"""Version of the rendering: it changes with every change of a token or of a trained span."""

Progress = Callable[[int, int], object]
"""Receives the records done and the records of all."""


@dataclass(frozen=True, kw_only=True)
class RenderResult:
    """A rendered dataset after a job."""

    dataset: str
    """Name of the rendered dataset."""
    commits: tuple[int, ...]
    """Commits that this job made; empty if all of the source was rendered already."""
    shape: str
    """Shape of the records."""
    counts: dict[str, int]
    """Records, texts, tokens and trained tokens of the new commits, and records with `typed` special tokens or with
    texts that were `cut`.
    """
    left_out: dict[str, Any]
    """Records that were left out: by reason, the count and the first names."""
    resumed: int
    """Units that an earlier run had finished."""


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
) -> RenderResult:
    """Render the commits of `source` that `target` lacks; `tokenizer` and `template` are digests on the store.

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
    made, resumed = list[Commit](), 0
    for commit in commits:
        if commit.digest not in done:
            new, finished = _render_commit(store, opened, source, commit, maker, most, progress)
            made.append(new)
            resumed += finished
    for split in sorted({split for commit in opened.commits() for split in commit.totals}):
        derive_sizes(store, target, split, make_spec(RenderedSpec(), backend, limit=2**31), workers=workers)
    notes = [dict(render_notes(commit) or {}) for commit in made]
    counts, left_out = _sums([note["counts"] for note in notes], [note["left_out"] for note in notes])
    return RenderResult(
        dataset=target,
        commits=tuple(commit.number for commit in made),
        shape=shape,
        counts=counts,
        left_out=left_out,
        resumed=resumed,
    )


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


def _render_commit(
    store: str,
    target: Dataset,
    source: str,
    commit: Commit,
    maker: Mapping[str, Any],
    most: int,
    progress: Progress,
) -> tuple[Commit, int]:
    """The commit of a source's commit, and the number of units that an earlier run had done."""
    job = metadata_digest(canonical_json({"commit": commit.digest, "maker": maker}))
    target.check_open(job)
    task: Message = {"store": store, "source": source, "commit": commit.number, "target": target.name}
    task |= {"job": job, "maker": maker}
    renderer = UnitRenderer(**task)
    finished = finished_units(target.backend, target.name, job)
    pending = [unit for unit in range(renderer.units) if unit not in finished]
    total = sum(each.documents for each in commit.totals.values())
    done = total - sum(renderer.row(unit).documents for unit in pending)

    def advance(records: int) -> None:
        nonlocal done
        done += records
        progress(done, total)

    advance(0)
    count = min(most, len(pending))
    if count > 1:
        work = UnitWork(
            name="render",
            module="fmscale.data.rendering.unit",
            task=task,
            units=pending,
            describe=lambda unit: renderer.row(unit).prefix,
            done=lambda outcome: None,
            advance=advance,
        )
        run_units(work, count)
    else:
        for unit in pending:
            renderer.run(unit, advance)
    outcomes = _outcomes(target.backend, target.name, job, renderer.units)
    counts, left_out = _sums([one.counts for one in outcomes], [one.left_out for one in outcomes])
    segments = {
        split: [
            (unit, seal)
            for unit, one in enumerate(outcomes)
            if one.split == split and (seal := seal_of(one)) is not None
        ]
        for split in commit.totals
    }
    if not counts.get("records"):
        raise DataError(
            f"No record of dataset {source} can be rendered",
            found=SkippedInput(left_out).counted(),
            remedy="Mend the records or the template. Nothing was committed.",
        )
    notes = {name: maker[name] for name in ("template", "tokenizer", "shape")}
    notes |= {"commit": commit.digest, "maker": dict(maker), "counts": counts, "left_out": left_out}
    made = target.append_commit(
        job=job,
        segments={split: rows for split, rows in segments.items() if rows},
        kind="records",
        tokenizer=maker["tokenizer"],
        dtype="",
        bos=maker["bos"],
        eos=renderer.end,
        extra={"render": notes},
    )
    return made, len(finished)


def _outcomes(backend: Backend, target: str, job: str, units: int) -> list[UnitOutcome]:
    return [decode_outcome(backend.get(record_key(target, job, unit))) for unit in range(units)]


def _sums(counts: list[Any], left_out: list[Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Sums of counts, and of what was left out."""
    total, names = Counter[str](), SkippedInput()
    for one in counts:
        total.update(one)
    for other in left_out:
        names.merge(other)
    return dict(sorted(total.items())), dict(sorted(names.items()))
