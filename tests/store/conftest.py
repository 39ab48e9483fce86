"""Fixtures of the tests of verified reads: a segment of six chunks, its tokens' object, and a wire to it."""

import pytest

from fmscale.store.backends.protocol import Backend
from fmscale.store.segments.tokens import ObjectRef, TokenSegment, open_segment
from tests.helpers.segments import documents, write_segment
from tests.helpers.wire import CHUNK, CHUNKS, Wire


@pytest.fixture
def segment(local_store: Backend) -> TokenSegment:
    tokens = CHUNKS * CHUNK // 2 - 700
    seal = write_segment(local_store, "p", documents([tokens - 10, 10]))
    return open_segment(local_store, "p", seal.digest)


@pytest.fixture
def ref(segment: TokenSegment) -> ObjectRef:
    return segment.array_shard("tokens", 0)


@pytest.fixture
def wire(local_store: Backend) -> Wire:
    return Wire(local_store)


@pytest.fixture
def data(local_store: Backend, ref: ObjectRef) -> bytes:
    return local_store.get(ref.key)[: ref.bytes]
