"""A unit reader for each source of a plan, opened at its first use: stages may add sources mid-run."""

import threading
from collections.abc import Mapping
from typing import Generic, TypeVar

from fmscale.data.plan.plan import Plan
from fmscale.data.reading.unit_reader import UnitReader
from fmscale.data.views.placement import open_placement
from fmscale.data.views.token_view import TokenView
from fmscale.data.views.view import View
from fmscale.errors import ConfigError
from fmscale.store.datasets.dataset import Dataset, open_dataset
from fmscale.store.tiers.fetch import Fetcher

Opened = TypeVar("Opened")


class OpenViews(Generic[Opened]):
    """Holder of readers, or of sources, by view; safe across threads."""

    def __init__(
        self, fetcher: Fetcher, *, document_ids: bool = False, datasets: Mapping[str, Dataset] | None = None
    ) -> None:
        """`document_ids`: read stable ids too. `datasets`: datasets that are open already, by name."""
        self.fetcher = fetcher
        self.document_ids = document_ids
        self._datasets = datasets or {}
        self._opened: dict[str, Opened] = {}
        self._lock = threading.Lock()

    def dataset(self, view: View) -> Dataset:
        """The dataset of a view."""
        return self._datasets.get(view.dataset) or open_dataset(self.fetcher.backend, view.dataset)


class Readers(OpenViews[UnitReader]):
    """Readers by source."""

    def of(self, plan: Plan, source: int) -> UnitReader:
        """The reader of a source of the plan. Raises ConfigError for rows of another shape than the first source's,
        DataError if the data no longer exists.
        """
        views = token_views(plan)
        view, first = views[source], views[0]
        with self._lock:
            if view.digest not in self._opened:
                if (view.sequence_length, view.dtype) != (first.sequence_length, first.dtype):
                    raise ConfigError(
                        f"source {plan.sources[source].label} has rows of another shape",
                        found=(view.sequence_length, view.dtype),
                        remedy=f"All sources of a run have {(first.sequence_length, first.dtype)}.",
                    )
                placement = open_placement(self.dataset(view), view)
                self._opened[view.digest] = UnitReader(placement, self.fetcher, document_ids=self.document_ids)
            return self._opened[view.digest]


def token_views(plan: Plan) -> list[TokenView]:
    """The view of each source. Raises ConfigError for rows that must be made into samples first."""
    views = []
    for source in plan.sources:
        if not isinstance(source.view, TokenView) or source.view.spec:
            raise ConfigError(
                f"source {source.label} has no rows of tokens of one length",
                found=source.view.spec or source.view.kind,
                remedy="Give batch.forward_tokens: its samples are packed into flat forwards.",
            )
        views.append(source.view)
    return views
