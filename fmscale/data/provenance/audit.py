"""Audit of deliveries: each sample once, with the stored bytes, in the right mixture, well shuffled.

It compares delivery records (document ids and token digests that ranks received) with the stored segments, as the
plain verified reader gives them. It uses neither order nor plan nor loader.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from fmscale.data.provenance.delivery import changed, order_hash, read_records, repeats, without
from fmscale.data.views.mask import load_mask
from fmscale.errors import DataError
from fmscale.store.datasets.dataset import Dataset
from fmscale.store.segments.tokens import TokenSegment, open_segment, read_document_table, read_tokens

CLASSES = 16
"""Equal parts of the dataset; the entropy counts the rows in each part."""
GROUP_ROWS = 128
"""Rows of a histogram of classes: 8 a class, so that a full shuffle fills every class."""


@dataclass(frozen=True, kw_only=True)
class AuditSource:
    """A source of the run, as stored."""

    dataset: Dataset
    """Dataset of the source."""
    commits: tuple[int, ...]
    """Commits that the run used, in order."""
    split: str
    """Split that the run used."""
    weights: tuple[tuple[int, float], ...]
    """(first sample, weight relative to the other sources) of each stage of the run; the first stage begins at 0."""
    masks: tuple[str, ...] = ()
    """Masks whose documents the run left out."""
    banned_rows: int = 0
    """Rows in the run's bans and quarantines; each has a substitute of the same epoch."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Findings on the delivered rows."""

    rows: int
    """Delivered rows; a redelivered row counts once."""
    tokens: int
    """Delivered tokens."""
    first_k: int
    """First delivered sample."""
    last_k: int
    """Last delivered sample."""
    redelivered: int
    """Samples that a killed job had received and the next job received again, with the same content."""
    changed_samples: int
    """Samples that were delivered again after a resume with other content."""
    duplicate_samples: int
    """Samples delivered more than once by one job."""
    missing_samples: int
    """Samples without a record, between the first and the last sample or among the trained samples: no rank received
    them, or a disk refused the record."""
    wrong_bytes: int
    """Rows whose tokens differ from their stored documents."""
    tokens_twice: int
    """Tokens delivered more often than epochs have begun, less possible substitutes of banned rows."""
    tokens_masked: int
    """Delivered tokens of masked documents."""
    tokens_missing: int
    """Tokens delivered less often than epochs have ended, less tails below a row and banned rows."""
    mixture_error: float
    """Largest |count - sum of shares| of any source at any prefix, in samples."""
    entropy_ratio: float
    """Entropy of dataset parts in groups of delivered rows, divided by the entropy of a full shuffle of these rows."""
    lag1_correlation: float
    """Correlation of dataset positions of consecutive rows; 0 in a full shuffle."""
    order_hash: str
    """Hash over all delivered samples in k order."""
    problems: list[str] = field(default_factory=list)
    """Violated promises in words; empty if all promises hold."""


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """The documents of one source, by id."""

    ids: np.ndarray
    start: np.ndarray
    segment: np.ndarray
    segments: list[tuple[AuditSource, TokenSegment, int]]
    masked: np.ndarray
    """int64 [n, 2]: begin and end of masked documents, in any order."""
    total: int


def audit(records: Sequence[Path], sources: Sequence[AuditSource], trained: range | None = None) -> AuditReport:
    """Audit the rows in the records of all ranks against the stored datasets. `trained`: samples that the run has
    received for certain.

    Raises DataError without records, and for a record with a document that no dataset holds.
    """
    table = read_records(records)
    again = repeats(table)
    job = table["job"].to_numpy()
    resumed = again[job[again] != job[again - 1]]
    same = np.array([changed(table, i) is None for i in resumed.tolist()], dtype=bool)
    duplicates, differing = len(again) - len(resumed), resumed[~same]
    changed_k = table["k"].to_numpy()[differing[:3]].tolist()
    table = without(table, resumed[same])
    streams = [_stream(source) for source in sources]
    k = table["k"].to_numpy()
    source = table["source"].to_numpy()
    pieces = table["pieces"].combine_chunks()
    rows_of = np.repeat(np.arange(len(table)), pieces.value_lengths().to_numpy(zero_copy_only=False))
    flat = pieces.flatten()
    offset = flat.field("offset").to_numpy()
    tokens = flat.field("tokens").to_numpy().astype(np.int64)
    ids = _words(flat.field("document"))
    place = np.empty(len(rows_of), dtype=np.int64)
    segment = np.empty(len(rows_of), dtype=np.int64)
    row_tokens = int(tokens[rows_of == 0].sum())
    counts = np.zeros(3, dtype=np.int64)
    for number, stream in enumerate(streams):
        part = source[rows_of] == number
        documents = _find(stream, ids[part])
        place[part] = stream.start[documents] + offset[part]
        segment[part] = stream.segment[documents]
        counts += _coverage(place[part], tokens[part], stream, sources[number], row_tokens, partial=int(k[0]) > 0)
    twice, masked, missing = counts.tolist()
    wrong = _wrong_rows(table, streams, source, rows_of, place, segment, tokens)
    expected = range(int(k[0]), int(k[-1]) + 1)
    if trained:
        expected = range(min(expected.start, trained.start), max(expected.stop, trained.stop))
    gaps = len(expected) - len(np.unique(k))
    first = np.searchsorted(rows_of, np.arange(len(table)))
    entropy, lag = _shuffle_quality(place[first], source, streams)
    error, allowed = _mixture_error(k, source, sources)
    promises = (
        (duplicates, "samples delivered more than once by one job"),
        (len(differing), f"samples that came again as something else after a resume, first k={changed_k}"),
        (gaps, "samples that no record shows as received"),
        (len(wrong), f"rows with bytes that are not those stored, first k={[int(k[i]) for i in wrong[:3]]}"),
        (twice, "tokens delivered twice in an epoch"),
        (masked, "tokens delivered of masked documents"),
        (missing, "tokens left out of an epoch"),
    )
    problems = [f"{count} {broken}" for count, broken in promises if count]
    if error > allowed:
        problems.append(f"a source is {error:.1f} samples away from its share")
    return AuditReport(
        rows=len(table),
        tokens=int(tokens.sum()),
        first_k=int(k[0]),
        last_k=int(k[-1]),
        redelivered=int(same.sum()),
        changed_samples=len(differing),
        duplicate_samples=duplicates,
        missing_samples=gaps,
        wrong_bytes=len(wrong),
        tokens_twice=twice,
        tokens_masked=masked,
        tokens_missing=missing,
        mixture_error=error,
        entropy_ratio=entropy,
        lag1_correlation=lag,
        order_hash=order_hash(table),
        problems=problems,
    )


def _stream(source: AuditSource) -> _Stream:
    """Position of every document of a source in its stream of tokens."""
    ids, starts, owners = [], [], []
    masks = [load_mask(source.dataset.backend, source.dataset.name, digest).documents for digest in source.masks]
    masked = [np.empty((0, 2), dtype=np.int64)]
    segments: list[tuple[AuditSource, TokenSegment, int]] = []
    at = 0
    for number in source.commits:
        manifest = source.dataset.commit(number).manifests.get(source.split)
        if manifest is None:
            continue
        for documents in masks:
            first = documents.position[documents.commit == number].astype(np.int64)
            count = (documents.stop - documents.start)[documents.commit == number].astype(np.int64)
            masked.append(at + np.stack([first, first + count], axis=1))
        for index in range(manifest.segments):
            handle = open_segment(source.dataset.backend, *manifest.segment(index))
            table = read_document_table(source.dataset.backend, handle)
            lengths = table["tokens"].to_numpy()
            ids.append(_words(table["id"].combine_chunks()))
            starts.append(at + np.cumsum(lengths) - lengths)
            owners.append(np.full(len(lengths), len(segments)))
            segments.append((source, handle, at))
            at += handle.tokens
    words = np.concatenate(ids)
    by_id = np.lexsort((words[:, 1], words[:, 0]))
    return _Stream(
        ids=words[by_id],
        start=np.concatenate(starts)[by_id],
        segment=np.concatenate(owners)[by_id],
        segments=segments,
        masked=np.concatenate(masked),
        total=at,
    )


def _words(ids: pa.Array) -> np.ndarray:
    """Ids as uint64 [n, 2]."""
    return np.frombuffer(ids.buffers()[1], dtype="<u8").reshape(-1, 2)[ids.offset :][: len(ids)]


def _find(stream: _Stream, ids: np.ndarray) -> np.ndarray:
    """Index of each id among the stream's documents. Raises DataError for an unknown id."""
    pair = [("a", "<u8"), ("b", "<u8")]
    known, delivered = (np.ascontiguousarray(words).view(pair).reshape(-1) for words in (stream.ids, ids))
    index = np.minimum(np.searchsorted(known, delivered), len(known) - 1)
    strange = np.flatnonzero(known[index] != delivered)
    if len(strange):
        raise DataError(
            "delivered documents that are not in the dataset",
            found=f"{len(strange)}, first {ids[strange[0]].tobytes().hex()}",
            remedy="Audit against the store, datasets and commits that the run read.",
        )
    return index


def _wrong_rows(
    table: pa.Table,
    streams: list[_Stream],
    source: np.ndarray,
    rows_of: np.ndarray,
    place: np.ndarray,
    segment: np.ndarray,
    tokens: np.ndarray,
) -> list[int]:
    """Rows whose digest differs from the digest of their documents' stored tokens."""
    digests = table["digest"].to_pylist()
    bounds = np.searchsorted(rows_of, np.arange(len(table) + 1))
    wrong = []
    for row in range(len(table)):
        stream = streams[source[row]]
        state = xxhash.xxh3_128()
        at, stop = bounds[row], bounds[row + 1]
        while at < stop:
            # Neighbouring documents of a segment are one run of tokens: one read for all of them.
            end = at + 1
            while end < stop and segment[end] == segment[at] and place[end] == place[end - 1] + tokens[end - 1]:
                end += 1
            origin, handle, start = stream.segments[segment[at]]
            count = int(tokens[at:end].sum())
            state.update(read_tokens(origin.dataset.backend, handle, int(place[at]) - start, count).tobytes())
            at = end
        if state.digest() != digests[row]:
            wrong.append(row)
    return wrong


def _coverage(
    place: np.ndarray, tokens: np.ndarray, stream: _Stream, source: AuditSource, row_tokens: int, *, partial: bool
) -> tuple[int, int, int]:
    """Three counts of tokens: delivered too often for the total delivered, despite a mask, and too seldom. With
    `partial` the records may begin within an epoch.
    """
    holes = stream.masked
    edges = np.concatenate((place, place + tokens, holes[:, 0], holes[:, 1], [0, stream.total]))
    counts = (len(place), len(place), len(holes), len(holes), 2)
    by_edge = np.argsort(edges, kind="stable")
    lengths = np.diff(edges[by_edge])
    times = np.cumsum(np.repeat([1, -1, 0, 0, 0], counts)[by_edge])[:-1]
    hole = np.cumsum(np.repeat([0, 0, 1, -1, 0], counts)[by_edge])[:-1] > 0
    masked = int(lengths[hole] @ times[hole])
    lengths, times = lengths[~hole], times[~hole]
    delivered, total = int(tokens.sum()), int(lengths.sum())
    # No row contains a commit's tail, which is shorter than a row.
    tails = len(source.commits) * (row_tokens - 1)
    banned = source.banned_rows * row_tokens
    most = -(-delivered // max(total - tails, 1)) + partial
    least = max(delivered // max(total, 1) - partial, 0)
    many, few = times > most, times < least
    twice = int(lengths[many] @ (times[many] - most)) - most * banned
    missing = int(lengths[few] @ (least - times[few])) - least * (tails + banned)
    return max(twice, 0), masked, max(missing, 0)


def _shuffle_quality(place: np.ndarray, source: np.ndarray, streams: list[_Stream]) -> tuple[float, float]:
    """(entropy ratio, lag-1 correlation) of the rows' positions in the dataset, in delivered order."""
    offsets = np.cumsum([0] + [stream.total for stream in streams])
    position = place + offsets[source]
    classes = np.searchsorted(np.quantile(position, np.arange(1, CLASSES) / CLASSES), position)
    shuffled = np.random.default_rng(0).permutation(classes)
    group = min(GROUP_ROWS, len(classes))
    full = _entropy(shuffled, group)
    ratio = _entropy(classes, group) / full if full else 1.0
    if len(position) < 3 or np.ptp(position) == 0:
        return ratio, 0.0
    return ratio, float(np.corrcoef(position[:-1], position[1:])[0, 1])


def _entropy(classes: np.ndarray, group: int) -> float:
    """Mean entropy in nats of the classes in groups of consecutive rows."""
    groups = classes[: len(classes) // group * group].reshape(-1, group)
    counts = np.stack([(groups == c).sum(axis=1) for c in range(CLASSES)], axis=1) / group
    terms = np.where(counts > 0, -counts * np.log(np.maximum(counts, 1e-12)), 0.0)
    return float(terms.sum(axis=1).mean())


def _mixture_error(k: np.ndarray, source: np.ndarray, sources: Sequence[AuditSource]) -> tuple[float, int]:
    """Largest distance of any source from its share at any prefix, in samples; and the allowed distance, because each
    stage begins its own mixture.
    """
    starts = [first for first, _ in sources[0].weights]
    weights = np.array([[weight for _, weight in entry.weights] for entry in sources])
    stage = np.searchsorted(np.array(starts, dtype=np.uint64), k, side="right") - 1
    shares = weights / weights.sum(axis=0)
    gaps = (np.abs(np.cumsum((source == s) - shares[s][stage])).max() for s in range(len(sources)))
    return max(map(float, gaps)), len(sources) * len(np.unique(stage))
