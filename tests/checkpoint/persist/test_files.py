"""Stored files: plain safetensors, aligned, checked, whole; and bounded memory."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fmscale.checkpoint.format.layout import PAGE, FileRange, Tensor, header, plan_layout
from fmscale.checkpoint.format.manifest import decode, encode, merge
from fmscale.checkpoint.format.piece import DTYPES
from fmscale.checkpoint.format.seal import Seal, StoredFile, StoredPiece, decode_seal, encode_seal
from fmscale.config.checkpoint import CheckpointConfig
from fmscale.errors import CorruptData, FmscaleError, FormatError
from fmscale.store.digest import canonical_json, metadata_digest
from fmscale.store.open import open_store
from tests.checkpoint.states import RUN, SMALL, Fleet, Tensors, advance, cut, process_of, values


def test_files_open_with_safetensors_and_hold_the_pieces(tmp_path: Path, in_thread: None) -> None:
    url = str(tmp_path / "store")
    with Fleet(url, ranks=2, seed=5) as fleet:
        fleet.saved(3)
    expected = {}
    for mine in cut(SMALL, 2, 5):
        for key, start, count in mine:
            dtype, shape = SMALL[key]
            full = count == int(np.prod(shape))
            name = f"{key[1]}/{key[0]}" + ("" if full else f"@{start}")
            expected[name] = values(key, dtype, 3, start, count).view(shape if full else (count,))
    found = {}
    for path in sorted(Path(url).rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.integers(0, 3000)), max_size=20),
    st.integers(1, 20_000),
)
def test_a_layout_has_every_piece_aligned_and_none_twice(parts: list[tuple[str, int]], file_bytes: int) -> None:
    ranges = [
        FileRange(tensor=Tensor(f"t{i}", "weight", dtype, (count,)), start=0, count=count)
        for i, (dtype, count) in enumerate(parts)
    ]
    layout = plan_layout(ranges, file_bytes)
    assert sorted(layout.order) == list(range(len(ranges)))
    assert [layout.ranges[place] for place in range(len(ranges))] == [ranges[i] for i in layout.order]
    again = plan_layout(layout.ranges, file_bytes)  # as in the persist process
    assert (again.ranges, again.offsets, again.files) == (layout.ranges, layout.offsets, layout.files)
    covered = 0
    for file in layout.files:
        assert file.begin % PAGE == file.header_bytes % PAGE == 0
        assert file.data_bytes <= file_bytes or file.stop - file.first == 1
        at = file.begin + file.header_bytes
        for place in range(file.first, file.stop):
            one = layout.ranges[place]
            assert layout.offsets[place] == at
            assert at % one.tensor.item_bytes == 0
            at += one.nbytes
        covered += file.stop - file.first
        assert at <= layout.memory_bytes
        assert len(header(layout.ranges[file.first : file.stop], file.header_bytes)) == file.header_bytes
    assert covered == len(ranges)


def sealed(rank: int, pieces: list[tuple[str, int, int]], shape: tuple[int, ...] = (10,)) -> Seal:
    placed = tuple(
        StoredPiece(
            range=FileRange(tensor=Tensor(name, "weight", "float32", shape), start=start, count=count),
            file=0,
            offset=4096 + 4 * start + 2048 * (name == "b"),
            digest="",
        )
        for name, start, count in pieces
    )
    file = StoredFile(key=f"folder/rank-{rank}", bytes=8192, sums="")
    return Seal(step=7, folder="folder", rank=rank, world_size=2, files=(file,), pieces=placed, bytes=40, referenced=0)


def test_seals_and_manifests_read_back_equal() -> None:
    seals = [sealed(0, [("a", 0, 4), ("b", 5, 5)]), sealed(1, [("b", 0, 5), ("a", 4, 6)])]
    assert [decode_seal(encode_seal(one), "seal") for one in seals] == seals
    manifest = merge(seals)
    data = encode(manifest)
    again = decode(data, metadata_digest(data), "manifest")
    assert (again.step, again.files, again.tensors) == (7, manifest.files, manifest.tensors)
    found = list(again.segments(0, 2, 5))
    assert found == [(0, 4096 + 8, 2, 2), (1, 4096 + 16, 4, 3)]


@pytest.mark.parametrize(
    "second",
    [
        [("a", 5, 5)],
        [("a", 3, 7)],
        [("a", 4, 5)],
        [("a", 4, 7)],
        [],
        [("a", 4, 6), ("a", 4, 6)],
        [("b", 0, 9)],
    ],
)
def test_pieces_that_do_not_tile_are_refused(second: list[tuple[str, int, int]]) -> None:
    with pytest.raises(FmscaleError, match="gap or overlap"):
        merge([sealed(0, [("a", 0, 4)]), sealed(1, second)])


def test_ranks_that_disagree_about_a_tensor_are_refused() -> None:
    with pytest.raises(FmscaleError, match="disagree about the tensor a"):
        merge([sealed(0, [("a", 0, 4)]), sealed(1, [("a", 4, 8)], shape=(12,))])


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_later_versions_are_refused_by_name(version: object) -> None:
    import json

    fields = json.loads(encode_seal(sealed(0, [("a", 0, 10)])))
    with pytest.raises(FormatError, match="upgrade fmscale"):
        decode_seal(canonical_json({**fields, "format_version": version}), "seal")
    with pytest.raises(CorruptData):
        decode_seal(b"{}", "seal")


def test_memory_stays_bounded_by_the_snapshot(tmp_path: Path) -> None:
    """A save of 64 MiB takes only its snapshot in the trainer, and less than half of it more in the persist process,
    also when all written bytes must be gathered.
    """
    import psutil

    tensors: Tensors = {(f"w{i}", "weight"): ("float32", (1 << 20,)) for i in range(16)}
    size = 64 << 20
    url = str(tmp_path / "store")
    with Fleet(url, tensors=tensors, ranks=1, seed=None, config=CheckpointConfig(keep_last=1)) as fleet:
        writer = psutil.Process(process_of(fleet.savers[0]).pid)
        advance(fleet.pieces[0], 0)  # memory of the test itself
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for step in range(1, 5):
            fleet.saved(step, changed=lambda piece: piece.name != "w3")
            assert writer.memory_full_info().uss < 150 << 20
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1.5 * size
        # Its peak, with the shared snapshot and the libraries.
        status = Path(f"/proc/{writer.pid}/status").read_text()
        peak = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024
        assert peak < size + (190 << 20)


def test_descriptors_threads_and_memories_do_not_grow(tmp_path: Path, in_thread: None) -> None:
    import psutil

    process = psutil.Process()
    url = str(tmp_path / "store")
    with Fleet(url, ranks=1) as fleet:
        for step in range(1, 4):
            fleet.saved(step)
        before = process.num_fds(), process.num_threads()
        for step in range(4, 24):
            fleet.saved(step)
        assert process.num_fds() <= before[0] + 1
        assert process.num_threads() <= before[1] + 1
    assert open_store(url).list_names(f"runs/{RUN}/checkpoints") != []
