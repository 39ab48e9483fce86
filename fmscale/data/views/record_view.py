"""Views of record datasets: a row is a record, of which a spec makes a sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fmscale.data.views.view import UNIT_BYTES, WINDOW, View, common_part
from fmscale.errors import DataError
from fmscale.store.datasets.commit import Commit
from fmscale.store.datasets.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class RecordView(View):
    """Rows that are records."""

    kind: ClassVar[str] = "records"
    records: tuple[int, ...]
    """Kept records of each commit."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Kept records of each commit."""
        return self.records

    @property
    def row_length(self) -> int:
        """A record."""
        return 1


def make_record_view(
    dataset: Dataset,
    *,
    spec: str,
    split: str = "train",
    commits: Sequence[int] | None = None,
    masks: Sequence[str] = (),
    rows_per_unit: int | None = None,
    window: int = WINDOW,
    live: Sequence[Commit] | None = None,
) -> RecordView:
    """The view of live commits (`live`, if known), or of `commits`, whose records become samples by `spec`.

    `rows_per_unit` makes a unit about 256 KiB by default. Raises DataError if no commit has the split, if masks leave
    no record of it, or if the dataset holds tokens.
    """
    if window < 1 or (rows_per_unit is not None and rows_per_unit < 1):
        raise DataError(
            "rows_per_unit and window are at least 1",
            found=(rows_per_unit, window),
            remedy="Only rows_per_unit may be left out.",
        )
    chosen, records, common = common_part(
        dataset, "records", split=split, commits=commits, masks=masks, window=window, spec=spec, live=live
    )
    if not sum(records):
        raise DataError(
            f"The masks leave no record in the split {split} of dataset {dataset.name}",
            found=common["masks"],
            remedy="Leave out a mask, or ingest more.",
        )
    totals = [commit.totals[split] for commit in chosen if split in commit.totals]
    mean = max(1, sum(total.bytes for total in totals) // sum(total.documents for total in totals))
    return RecordView(
        rows_per_unit=-(-UNIT_BYTES // mean) if rows_per_unit is None else rows_per_unit, records=records, **common
    )
