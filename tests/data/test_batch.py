"""Documents of a microbatch, compared with a count token by token."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmscale.data.batch import DocumentSpan, Microbatch, UnitDocuments


@dataclass(frozen=True)
class Stream:
    """A stream of documents, by token."""

    document: np.ndarray
    """Index of each token's document."""
    offset: np.ndarray
    """Position of each token in its document."""


def make_stream(lengths: list[int]) -> Stream:
    return Stream(
        np.repeat(np.arange(len(lengths)), lengths), np.concatenate([np.arange(length) for length in lengths])
    )


def name(document: int) -> tuple[int, int]:
    return 1000 + document, 7 * document


def unit_of(stream: Stream, first: int, stop: int, ids: bool = True) -> UnitDocuments:
    """The documents of a unit that holds tokens [first, stop) of the stream."""
    inside = stream.document[first:stop]
    ends = [i + 1 for i in range(len(inside)) if i + 1 == len(inside) or inside[i + 1] != inside[i]]
    names = np.array([name(int(inside[end - 1])) for end in ends], dtype=np.uint64)
    return UnitDocuments(
        ends=np.array(ends, dtype=np.int64), offset=int(stream.offset[first]), ids=names if ids else None
    )


def make_batch(rows: list[tuple[UnitDocuments, int]], length: int, fillers: int = 0) -> Microbatch:
    count = len(rows)
    return Microbatch(
        tokens=torch.zeros((count + fillers, length), dtype=torch.int64),
        k=np.arange(count, dtype=np.uint64),
        row_source=np.zeros(count, dtype=np.uint16),
        row=np.arange(count, dtype=np.uint64),
        step=0,
        last_of_step=True,
        documents=[unit for unit, _ in rows],
        offsets=[offset for _, offset in rows],
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[Stream, int, list[tuple[int, int, int]], int]:
    """A stream, T, rows as (first token of the unit, token after it, row in the unit), fillers."""
    lengths = draw(st.lists(st.one_of(st.just(1), st.integers(1, 12)), min_size=1, max_size=25))
    stream = make_stream(lengths)
    total = len(stream.document)
    length = draw(st.integers(1, min(total, 9)))
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        units = draw(st.integers(1, max(total // length, 1)))
        first = draw(st.integers(0, total - units * length))
        rows.append((first, first + units * length, draw(st.integers(0, units - 1))))
    return stream, length, rows, draw(st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_spans_boundaries_positions_and_weights_by_token(
    case: tuple[Stream, int, list[tuple[int, int, int]], int],
) -> None:
    stream, length, rows, fillers = case
    batch = make_batch([(unit_of(stream, first, stop), row * length) for first, stop, row in rows], length, fillers)
    spans, cu, positions, weights = [], [0], [], []
    for number, (first, _, row) in enumerate(rows):
        at = first + row * length
        for i in range(length):
            token = at + i
            if i == 0 or stream.document[token] != stream.document[token - 1]:
                spans.append([number, i, i, name(int(stream.document[token])), int(stream.offset[token])])
                positions.append(0)
                weights.append(0.0)
            else:
                positions.append(positions[-1] + 1)
                weights.append(1.0)
            spans[-1][2] = i + 1
            if i + 1 == length or stream.document[token + 1] != stream.document[token]:
                cu.append(number * length + i + 1)
    for filler in range(fillers):
        positions += range(length)
        weights += [0.0] * length
        cu.append((len(rows) + filler + 1) * length)

    assert [(s.row, s.start, s.stop, s.document, s.offset) for s in batch.spans] == [tuple(s) for s in spans]
    assert batch.piece_bounds.dtype == torch.int32
    assert batch.piece_bounds.tolist() == cu
    assert batch.token_positions.dtype == torch.int64
    assert batch.token_positions.tolist() == np.reshape(positions, (-1, length)).tolist()
    assert batch.loss_weights.dtype == torch.float32
    assert batch.loss_weights.tolist() == np.reshape(weights, (-1, length)).tolist()


def test_a_row_that_begins_inside_a_document_says_how_far_in() -> None:
    stream = make_stream([10, 1, 1, 4])
    batch = make_batch([(unit_of(stream, 3, 15), 0), (unit_of(stream, 3, 15), 6)], 6)
    assert batch.spans == [
        DocumentSpan(row=0, start=0, stop=6, document=name(0), offset=3),
        DocumentSpan(row=1, start=0, stop=1, document=name(0), offset=9),
        DocumentSpan(row=1, start=1, stop=2, document=name(1), offset=0),
        DocumentSpan(row=1, start=2, stop=3, document=name(2), offset=0),
        DocumentSpan(row=1, start=3, stop=6, document=name(3), offset=0),
    ]
    assert batch.piece_bounds.tolist() == [0, 6, 7, 8, 9, 12]
    assert batch.token_positions.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]
    assert batch.loss_weights.tolist() == [[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


def test_a_document_without_tokens_is_no_piece() -> None:
    unit = UnitDocuments(
        ends=np.array([2, 2, 6, 6], dtype=np.int64),
        offset=0,
        ids=np.array([name(i) for i in range(4)], dtype=np.uint64),
    )
    batch = make_batch([(unit, 0), (unit, 3)], 3)
    assert [(s.row, s.start, s.stop, s.document) for s in batch.spans] == [
        (0, 0, 2, name(0)),
        (0, 2, 3, name(2)),
        (1, 0, 3, name(2)),
    ]
    assert batch.piece_bounds.tolist() == [0, 2, 3, 6]


def test_without_ids_documents_have_no_name() -> None:
    stream = make_stream([4, 4])
    batch = make_batch([(unit_of(stream, 0, 8, ids=False), 0)], 8)
    assert [span.document for span in batch.spans] == [(0, 0), (0, 0)]
    assert [(span.start, span.stop) for span in batch.spans] == [(0, 4), (4, 8)]


def test_a_batch_of_fillers_alone_weighs_nothing() -> None:
    batch = make_batch([], 4, fillers=2)
    assert batch.rows == 0
    assert batch.spans == []
    assert batch.piece_bounds.tolist() == [0, 4, 8]
    assert batch.token_positions.tolist() == [[0, 1, 2, 3]] * 2
    assert float(batch.loss_weights.sum()) == 0.0
