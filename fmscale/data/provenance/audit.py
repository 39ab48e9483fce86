"""Audit of deliveries: each sample once, with the stored bytes, in the right mixture, well shuffled.

It compares delivery records (ids of documents or records, and digests of samples that ranks received) with the stored
segments, as the plain verified readers give them; a sample of a spec is made again. It uses neither order nor plan nor
loader. A record counts as a document of one token.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from fmscale.data.provenance.delivery import changed, order_hash, read_records, repeats, without
from fmscale.data.provenance.stored import AuditSource, Stored, find, open_stored, stored_digest, words_of
from fmscale.errors import StoreError
from fmscale.store.segments.records import RecordSegment

logger = logging.getLogger(__name__)

CLASSES = 16
"""Equal parts of the dataset; the entropy counts the rows in each part."""
GROUP_ROWS = 128
"""Rows of a histogram of classes: 8 a class, so that a full shuffle fills every class."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Findings on the delivered rows."""

    rows: int
    """Delivered rows; a redelivered row counts once."""
    left_out: int
    """Samples among them without content, whose rows bans, quarantines or exclusions name."""
    unexplained: int
    """Samples without content whose rows nothing names."""
    tokens: int
    """Delivered tokens and records."""
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
    """Rows whose content differs from that of their stored documents or records."""
    tokens_twice: int
    """Tokens and records delivered more often than epochs have begun, less possible substitutes of banned rows."""
    tokens_masked: int
    """Delivered tokens of masked documents, and masked records."""
    tokens_missing: int
    """Tokens and records delivered less often than epochs have ended, less tails below a row and banned rows."""
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
    stored = [open_stored(source) for source in sources]
    k = table["k"].to_numpy()
    source = table["source"].to_numpy()
    pieces = table["pieces"].combine_chunks()
    rows_of = np.repeat(np.arange(len(table)), pieces.value_lengths().to_numpy(zero_copy_only=False))
    flat = pieces.flatten()
    offset = flat.field("offset").to_numpy()
    tokens = flat.field("tokens").to_numpy().astype(np.int64)
    ids = words_of(flat.field("document"))
    empty = np.setdiff1d(np.arange(len(table)), rows_of)
    row, named = table["row"].to_numpy(), [empty[:0]]
    document = np.empty(len(rows_of), dtype=np.int64)
    place = np.empty(len(rows_of), dtype=np.int64)
    inside = np.empty(len(rows_of), dtype=np.bool_)
    counts = np.zeros(3, dtype=np.int64)
    for number, (entry, held) in enumerate(zip(sources, stored, strict=True)):
        part = np.flatnonzero(source[rows_of] == number)
        found = find(held, ids[part])
        document[part], place[part] = found, held.start[found] + offset[part]
        inside[part] = (offset[part] >= 0) & (place[part] + tokens[part] <= held.stop[found])
        lost = empty[(source[empty] == number) & bool(entry.spec)]
        bounds = np.array(entry.banned, dtype=np.uint64).flatten()
        named.append(lost[np.searchsorted(bounds, row[lost], side="right") % 2 == 1])
        row_tokens = int(tokens[part][rows_of[part] == rows_of[part[:1]]].sum())
        absent = len(named[-1]) * row_tokens
        banned = sum(stop - first for first, stop in entry.banned) * row_tokens
        tails = len(entry.commits) * (row_tokens - 1)
        spans = (place[part], tokens[part])
        counts += _coverage(*spans, held, absent=absent, banned=banned, tails=tails, partial=int(k[0]) > 0)
    twice, masked, missing = counts.tolist()
    wrong = _wrong_rows(table, stored, (rows_of, document, place, tokens, inside))
    expected = range(int(k[0]), int(k[-1]) + 1)
    if trained:
        expected = range(min(expected.start, trained.start), max(expected.stop, trained.stop))
    gaps = len(expected) - len(np.unique(k))
    full, first = np.unique(rows_of, return_index=True)
    entropy, lag = _shuffle_quality(place[first], source[full], stored)
    error, allowed = _mixture_error(k, source, sources)
    left_out = np.concatenate(named)
    unexplained = np.setdiff1d(empty, left_out)
    of_records = [isinstance(held.segments[0][0], RecordSegment) for held in stored]
    unit = "records" if all(of_records) else "tokens or records" if any(of_records) else "tokens"
    promises = (
        (duplicates, "samples delivered more than once by one job"),
        (len(differing), f"samples that came again as something else after a resume, first k={changed_k}"),
        (gaps, "samples that no record shows as received"),
        (len(wrong), f"rows with bytes that are not those stored, first k={[int(k[i]) for i in wrong[:3]]}"),
        (len(unexplained), f"samples without content for no known reason, first k={k[unexplained[:3]].tolist()}"),
        (twice, f"{unit} delivered twice in an epoch"),
        (masked, f"{unit} delivered of masked documents"),
        (missing, f"{unit} left out of an epoch"),
    )
    problems = [f"{count} {broken}" for count, broken in promises if count]
    if error > allowed:
        problems.append(f"a source is {error:.1f} samples away from its share")
    return AuditReport(
        rows=len(table),
        left_out=len(left_out),
        unexplained=len(unexplained),
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


def _wrong_rows(table: pa.Table, stored: Sequence[Stored], pieces: tuple[np.ndarray, ...]) -> list[int]:
    """Rows whose digest differs from that of their stored documents or record. `pieces`: row, document, place, tokens
    of each piece, and True for a piece within its document.
    """
    digests, k, numbers = (table[name].to_pylist() for name in ("digest", "k", "source"))
    rows_of, *columns, inside = pieces
    bounds = np.searchsorted(rows_of, np.arange(len(table) + 1))
    wrong = []
    for row in np.unique(rows_of).tolist():
        own = slice(bounds[row], bounds[row + 1])
        try:
            digest = stored_digest(stored[numbers[row]], k[row], *(column[own] for column in columns))
        except StoreError:
            raise
        except Exception as error:  # the wrong record may raise anything in a decoder
            logger.warning("sample %d cannot be made again: %s", k[row], error)
            digest = b""
        if digest != digests[row] or not inside[own].all():
            wrong.append(row)
    return wrong


def _coverage(
    place: np.ndarray, tokens: np.ndarray, stored: Stored, *, absent: int, banned: int, tails: int, partial: bool
) -> tuple[int, int, int]:
    """Three counts of tokens: delivered too often for the total delivered, despite a mask, and too seldom. `absent` are
    those of samples without content, `banned` those of banned rows, `tails` those of commits' ends below a row. With
    `partial` the records may begin within an epoch.
    """
    holes = stored.masked
    edges = np.concatenate((place, place + tokens, holes[:, 0], holes[:, 1], [0, stored.stop[-1]]))
    counts = (len(place), len(place), len(holes), len(holes), 2)
    by_edge = np.argsort(edges, kind="stable")
    lengths = np.diff(edges[by_edge])
    times = np.cumsum(np.repeat([1, -1, 0, 0, 0], counts)[by_edge])[:-1]
    hole = np.cumsum(np.repeat([0, 0, 1, -1, 0], counts)[by_edge])[:-1] > 0
    masked = int(lengths[hole] @ times[hole])
    lengths, times = lengths[~hole], times[~hole]
    delivered, total = int(tokens.sum()) + absent, int(lengths.sum())
    most = -(-delivered // max(total - tails, 1)) + partial
    least = max(delivered // max(total, 1) - partial, 0)
    many, few = times > most, times < least
    twice = int(lengths[many] @ (times[many] - most)) - most * banned
    missing = int(lengths[few] @ (least - times[few])) - least * (tails + banned)
    return max(twice, 0), masked, max(missing, 0)


def _shuffle_quality(place: np.ndarray, source: np.ndarray, stored: Sequence[Stored]) -> tuple[float, float]:
    """(entropy ratio, lag-1 correlation) of the rows' positions in the dataset, in delivered order."""
    offsets = np.cumsum([0] + [held.stop[-1] for held in stored])
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
