"""Units of any kind of view as flat forwards read them: records that can be taken one by one."""

import numpy as np

from fmscale.data.batch import UnitDocuments
from fmscale.data.forward import RowPiece
from fmscale.data.reading.record_reader import RecordReader, RecordUnit
from fmscale.data.reading.unit_reader import UnitRead, UnitReader
from fmscale.data.samples.protocol import Record
from fmscale.data.views.token_view import TokenView


class TokenUnit:
    """Rows of tokens."""

    def __init__(self, rows: np.ndarray, documents: UnitDocuments, damaged: dict[int, Exception]) -> None:
        """`rows` [b, T]; `damaged`: rows that no copy can serve."""
        self._rows = rows
        self._documents = documents
        self._damaged = damaged
        self.bytes = rows.nbytes
        """Host memory that it takes."""

    def record(self, offset: int) -> Record:
        """The row's tokens, and the lengths of the documents in it. Raises CorruptChunk if no copy can serve it."""
        if offset in self._damaged:
            raise self._damaged[offset]
        return {"tokens": self._rows[offset], "pieces": tuple(piece.tokens for piece in self.pieces(offset))}

    def pieces(self, offset: int) -> list[RowPiece]:
        """The pieces of documents in the row, in order; their ids need a reader with document ids."""
        T = self._rows.shape[1]
        return [RowPiece(*piece) for piece in self._documents.pieces(offset * T, T)]


class TokenUnits:
    """Units of a token view."""

    def __init__(self, reader: UnitReader, view: TokenView) -> None:
        self.unit_bytes = view.rows_per_unit * view.sequence_length * np.dtype(view.dtype).itemsize
        """Bytes of a unit, about."""
        self._units = view.units
        self._reader = reader
        self._row = (view.sequence_length, np.dtype(view.dtype))

    def read(self, unit: int, next_use: int = 0) -> TokenUnit:
        """Read a unit."""
        length, dtype = self._row
        rows = np.empty((self._units.span(unit)[2], length), dtype)
        return self._unit(rows, self._reader.read(unit, rows.reshape(-1), next_use))

    def read_row(self, row: int) -> TokenUnit:
        """Read the chunks of a row, which has offset 0."""
        rows = np.empty((1, self._row[0]), self._row[1])
        return self._unit(rows, self._reader.read_row(row, rows.reshape(-1)))

    def _unit(self, rows: np.ndarray, read: UnitRead) -> TokenUnit:
        length = self._row[0]
        bad: dict[int, Exception] = {}
        for start, stop, error in read.damaged:
            bad |= dict.fromkeys(range(start // length, -(-stop // length)), error)
        return TokenUnit(rows, read.documents, bad)


Unit = TokenUnit | RecordUnit
"""The content of a unit, or of a row that was read alone."""
UnitSource = TokenUnits | RecordReader
"""Reads units of one view; used from many threads."""
