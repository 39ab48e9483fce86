"""Everything that flat forwards need of each source of a plan: its units, its spec, the lengths of its samples."""

from collections.abc import Mapping
from dataclasses import dataclass

from fmscale.data.order.feistel import U64
from fmscale.data.plan.flat import Sizes as Lengths
from fmscale.data.plan.plan import Plan, Source
from fmscale.data.reading.readers import OpenViews
from fmscale.data.reading.record_reader import RecordReader
from fmscale.data.reading.unit import TokenUnits, UnitSource
from fmscale.data.reading.unit_reader import UnitReader
from fmscale.data.samples.protocol import WEIGHTS, Part, Spec
from fmscale.data.samples.sizes import RowColumn, SampleSizes, open_parts, open_sizes
from fmscale.data.samples.specs import open_spec
from fmscale.data.views.placement import open_placement
from fmscale.data.views.token_view import TokenView
from fmscale.data.views.view import View
from fmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSource:
    """An opened source."""

    units: UnitSource
    spec: Spec
    sizes: SampleSizes
    derived: Mapping[str, RowColumn]
    """Derived columns that are parts of its samples, by name."""


class SampleSources(OpenViews[SampleSource]):
    """Sources by view, each opened at its first use: stages may add sources mid-run."""

    def of(self, plan: Plan, source: int) -> SampleSource:
        """A source of the plan, opened. Raises as `open` does."""
        return self.open(plan.sources[source])

    def open(self, source: Source) -> SampleSource:
        """The opened source, kept by its view. Raises ConfigError if its samples have other parts than the first
        source's, DataError without a column of sizes.
        """
        view = source.view
        with self._lock:
            if view.digest not in self._opened:
                opened = self._open(view)
                first = next(iter(self._opened.values()), opened)
                if _parts(opened.spec) != _parts(first.spec):
                    raise ConfigError(
                        f"the samples of source {source.label} have other parts than those of the first",
                        found=f"{_parts(opened.spec)} and {_parts(first.spec)}",
                        remedy="Give all sources of a run specs with the same parts.",
                    )
                self._opened[view.digest] = opened
            return self._opened[view.digest]

    def lengths(self, plan: Plan, source: int, rows: U64) -> Lengths:
        """Upper bounds of the lengths of these rows' samples."""
        return self.of(plan, source).sizes.take(rows)

    def _open(self, view: View) -> SampleSource:
        backend = self.fetcher.backend
        dataset = self.dataset(view)
        placement, spec = open_placement(dataset, view), open_spec(backend, view.spec)
        units: UnitSource
        if isinstance(view, TokenView):
            units = TokenUnits(UnitReader(placement, self.fetcher, document_ids=self.document_ids), view)
        else:
            mean = sum(c.totals[view.split].bytes for c in dataset.named(view.commits) if view.split in c.totals)
            units = RecordReader(
                placement,
                self.fetcher,
                unit_bytes=max(1, mean * view.rows_per_unit // view.units.N),
                columns=spec.columns,
                ids=self.document_ids,
            )
        sizes, derived = open_sizes(backend, placement), open_parts(backend, placement, spec)
        return SampleSource(units=units, spec=spec, sizes=sizes, derived=derived)


def _parts(spec: Spec) -> dict[str, Part]:
    return {name: part for name, part in spec.parts.items() if name != WEIGHTS}
