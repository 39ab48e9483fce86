"""Units of any kind of view as flat forwards read them: records that can be taken one by one."""

from typing import Protocol

import numpy as np

from fmscale.data.batch import UnitDocuments
from fmscale.data.forward import RowPiece
from fmscale.data.reading.unit_reader import UnitRead, UnitReader
from fmscale.data.samples.protocol import Record
from fmscale.data.views.token_view import TokenView
from fmscale.data.views.view import View


class Unit(Protocol):
    """The content of a unit, or of a row that was read alone."""

    @property
    def bytes(self) -> int:
        """Host memory that it takes."""
        ...

    def record(self, offset: int) -> Record:
        """The record in row `offset` of the unit. Raises CorruptChunk if no copy can serve it."""
        ...

    def pieces(self, offset: int) -> list[RowPiece]:
        """The documents, or the record, in row `offset`. Needs a reader with document ids."""
        ...


class UnitSource(Protocol):
    """Reads units of one view; used from many threads."""

    @property
    def view(self) -> View:
        """View that is read."""
        ...

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit, about."""
        ...

    def read(self, unit: int, next_use: int = 0) -> Unit:
        """Read a unit."""
        ...

    def read_row(self, row: int) -> Unit:
        """Read a single row with as few bytes around it as the store's chunks allow; it has offset 0."""
        ...


class TokenUnit:
    """Rows of tokens."""

    def __init__(self, rows: np.ndarray, documents: UnitDocuments, damaged: dict[int, Exception]) -> None:
        """`rows` [b, T]; `damaged`: rows that no copy can serve."""
        self._rows = rows
        self._documents = documents
        self._damaged = damaged
        self.bytes = rows.nbytes

    def record(self, offset: int) -> Record:
        """The row's tokens, and the lengths of the documents in it."""
        if offset in self._damaged:
            raise self._damaged[offset]
        return {"tokens": self._rows[offset], "pieces": tuple(piece.tokens for piece in self.pieces(offset))}

    def pieces(self, offset: int) -> list[RowPiece]:
        """The pieces of documents in the row, in order."""
        documents, T = self._documents, self._rows.shape[1]
        start = position = offset * T
        index = int(np.searchsorted(documents.ends, start, side="right"))
        begin = int(documents.ends[index - 1]) if index else -documents.offset
        out = []
        while position < start + T:
            end = min(int(documents.ends[index]), start + T)
            if end > position:
                name = (0, 0) if documents.ids is None else (int(documents.ids[index, 0]), int(documents.ids[index, 1]))
                out.append(RowPiece(name, position - begin, position - start, end - position))
            position = begin = end
            index += 1
        return out


class TokenUnits:
    """Units of a token view."""

    def __init__(self, reader: UnitReader, view: TokenView) -> None:
        self.view = view
        self.unit_bytes = view.rows_per_unit * view.sequence_length * np.dtype(view.dtype).itemsize
        self._reader = reader
        self._row = (view.sequence_length, np.dtype(view.dtype))

    def read(self, unit: int, next_use: int = 0) -> Unit:
        """Read a unit."""
        length, dtype = self._row
        rows = np.empty((self.view.units.span(unit)[2], length), dtype)
        return self._unit(rows, self._reader.read(unit, rows.reshape(-1), next_use))

    def read_row(self, row: int) -> Unit:
        """Read the chunks of a row."""
        rows = np.empty((1, self._row[0]), self._row[1])
        return self._unit(rows, self._reader.read_row(row, rows.reshape(-1)))

    def _unit(self, rows: np.ndarray, read: UnitRead) -> Unit:
        length = self._row[0]
        bad: dict[int, Exception] = {}
        for start, stop, error in read.damaged:
            bad |= dict.fromkeys(range(start // length, -(-stop // length)), error)
        return TokenUnit(rows, read.documents, bad)
