"""Pictures of mixed sizes from a user's own package: its spec, model and objective, named in YAML alone."""

import hashlib
import itertools
import json
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmscale.config import load_config
from fmscale.config.kinds import own_class
from fmscale.data.flat_loader import FlatLoader
from fmscale.data.forward import FlatForward
from fmscale.data.open import open_flat_loader
from fmscale.data.plan.order_log import replay
from fmscale.data.samples.derive import Derived, derive_sizes
from fmscale.data.samples.protocol import BadRecord, Draw, Sample
from fmscale.data.samples.specs import import_spec, open_spec, spec_text
from fmscale.errors import ConfigError, DataError
from fmscale.store.log.log import RUN_KINDS, Log
from fmscale.store.open import open_store
from tests.helpers.pictures import (
    CLASSES,
    HUGE,
    INTERLACED,
    SIGNATURE,
    as_table,
    damage,
    exif,
    installed_pictures,
    paint,
    pam,
    picture,
    png,
    records,
)
from tests.helpers.record_datasets import record_dataset

FORWARD = 256
COUNT = 100


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with installed_pictures(tmp_path_factory.mktemp("package")) as folder:
        yield folder


@pytest.fixture(scope="module")
def spec(package: str) -> Any:
    return crops()


def crops(**fields: Any) -> Any:
    """The package's spec."""
    return own_class("pictures.spec:Crops")(**{"classes": CLASSES, "patch": 4, **fields})


def record(data: bytes | None, **fields: Any) -> dict[str, Any]:
    return {"name": "tiles/a.png", "data": data, "folder": "tiles", **fields}


def tiles(height: int = 9, width: int = 14) -> np.ndarray:
    return paint("tiles", height, width, 0)


def with_opacity(pixels: np.ndarray, opacity: int) -> np.ndarray:
    return np.concatenate((pixels, np.full((*pixels.shape[:2], 1), opacity)), -1)


GREY = np.arange(40).reshape(5, 8, 1) % 4
ANIMATION = ([(b"acTL", struct.pack(">II", 2, 0))], [(b"fdAT", b"\0\0\0\1" + zlib.compress(bytes(100)))])
RGB = tiles().astype(np.int64)
MODES: dict[str, tuple[bytes, np.ndarray]] = {
    "every filter": (png(tiles(), filters=(0, 1, 2, 3, 4)), RGB),
    "16 bits": (png(RGB * 257, depth=16, filters=(4, 3)), RGB),
    "1 bit": (png(GREY // 2, depth=1), np.repeat(GREY // 2 * 255, 3, -1)),
    "2 bits": (png(GREY, depth=2), np.repeat(GREY * 85, 3, -1)),
    "palette": (
        png(GREY, depth=4, colour=3, before=[(b"PLTE", bytes(range(12))), (b"tRNS", b"\xff\0")]),
        np.array([[0, 1, 2], [255, 255, 255], [6, 7, 8], [9, 10, 11]])[GREY[..., 0]],
    ),
    "no opacity": (png(with_opacity(tiles(), 0)), np.full_like(RGB, 255)),
    "half opacity": (png(with_opacity(tiles(), 51)), (RGB * 51 + 255 * 204 + 127) // 255),
    "a colour that is transparent": (
        png(GREY * 85, before=[(b"tRNS", struct.pack(">H", 85))]),
        np.repeat(np.where(GREY == 1, 255, GREY * 85), 3, -1),
    ),
    "animation": (png(tiles(), before=ANIMATION[0], after=ANIMATION[1]), RGB),
    "CMYK": (pam(with_opacity(255 - tiles(), 51), "CMYK"), (RGB * 204 + 127) // 255),
    "16 bits of PAM": (pam(RGB * 257, most=65535), RGB),
    "PPM": (b"P6 14\n9 255\n" + tiles().tobytes(), RGB),
    **{
        f"turn {number}": (png(tiles(), before=[exif(number, order)]), seen)
        for number, order, seen in (
            (2, "<", RGB[:, ::-1]),
            (3, ">", RGB[::-1, ::-1]),
            (4, "<", RGB[::-1]),
            (5, "<", RGB.swapaxes(0, 1)),
            (6, ">", np.rot90(RGB, -1)),
            (7, "<", np.rot90(RGB, 2).swapaxes(0, 1)),
            (8, "<", np.rot90(RGB)),
            (9, "<", RGB),
        )
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb_as_it_is_to_be_seen(spec: Any, mode: str) -> None:
    data, seen = MODES[mode]
    pixels, label = spec.decode(record(data))
    assert (pixels.dtype, label) == (np.uint8, 1)
    assert np.array_equal(pixels, seen)


WHOLE = png(tiles(), filters=(1,))
TROUBLES: dict[str, tuple[dict[str, Any], bool, str, str, str]] = {
    # record, size sees it, cause, value, remedy
    "no bytes": (record(None), True, "no bytes in data", "tiles/a.png: NoneType", "column"),
    "0 bytes": (record(b""), True, "no picture", "b''", "PNG or PAM"),
    "text": (record(b"<html>not found</html>"), True, "no picture", "<html>", "PNG or PAM"),
    "no class": (record(WHOLE, folder="cats"), True, "no class", "cats", "`classes`"),
    "large file": (record(WHOLE + bytes(2000)), True, "too large", f"{len(WHOLE) + 2000} bytes", "bytes_most, 2000"),
    "many pixels": (record(HUGE), True, "too large", "20000 x 20000 pixels", "pixels_most, 1000000"),
    "header cut": (record(WHOLE[:30]), True, "header is cut off", "30 bytes", "whole copy"),
    "PAM's header cut": (record(pam(tiles())[:30]), True, "header is cut off", "P7", "whole copy"),
    "header changed": (record(WHOLE[:20] + b"\7" + WHOLE[21:]), True, "header does not match its checksum", "", "copy"),
    "interlaced": (record(INTERLACED), True, "interlaced", "[0, 0, 1]", "without interlacing"),
    "no pixels": (record(pam(tiles()[:0])), True, "no pixels", "(14, 0)", "Leave it out"),
    "unknown tuples": (record(pam(tiles(), "LAB")), True, "unknown type", "LAB", "Convert"),
    "end cut": (record(WHOLE[:-20]), False, "its end is cut off", f"{len(WHOLE) - 20} bytes", "whole copy"),
    "end zeroed": (record(WHOLE[:-60] + bytes(60)), False, "does not match its checksum", "IDAT", "whole copy"),
    "PAM's end cut": (record(pam(tiles())[:-1]), False, "pixels are missing", "377 bytes of 378", "whole copy"),
    "bit flipped": (record(WHOLE[:60] + bytes([WHOLE[60] ^ 1]) + WHOLE[61:]), False, "its checksum", "IDAT", "copy"),
    "no palette": (record(png(GREY, depth=4, colour=3)), False, "no colour in the palette", "3 of 0", "copy"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_file_that_cannot_be_used_is_refused_with_its_name(package: str, trouble: str) -> None:
    bad, early, cause, value, remedy = TROUBLES[trouble]
    spec = crops(bytes_most=2000, pixels_most=10**6)
    if early:
        with pytest.raises(BadRecord):
            spec.size(bad)
    else:
        assert spec.size(bad) in (2, 6)
    with pytest.raises(BadRecord) as caught:
        spec.decode(bad)
    assert cause in caught.value.cause
    assert "tiles/a.png: " in str(caught.value.found)
    assert value in str(caught.value.found)
    assert remedy in caught.value.remedy


def test_pixels_are_decompressed_up_to_the_number_that_the_header_tells(spec: Any) -> None:
    many = png(np.zeros((4, 40_000, 3), np.uint8))
    header = many[12:16] + struct.pack(">II", 4, 4) + many[24:29]
    few = many[:12] + header + struct.pack(">I", zlib.crc32(header)) + many[33:]
    assert spec.decode(record(few))[0].shape == (4, 4, 3)
    with pytest.raises(BadRecord, match="too large"):
        crops(pixels_most=10**5).decode(record(many))


def made(spec: Any, data: bytes, k: int, limit: int = 10**6) -> Sample:
    sample: Sample = spec.make(spec.decode(record(data)), Draw(7, k), limit)
    return sample


def test_a_crop_is_a_part_of_the_picture_and_a_function_of_its_draws(spec: Any) -> None:
    numbers = np.arange(1, 41 * 30 + 1).reshape(41, 30, 1) * np.array([7, 131, 3]) % 256
    data = png(numbers)
    most = spec.size(record(data))
    assert most == 10 * 7
    places, sides, flips = set(), set(), 0
    for k in range(40):
        sample = made(spec, data, k)
        assert [value.tobytes() for value in sample.tensors.values()] == [
            value.tobytes() for value in made(spec, data, k).tensors.values()
        ]
        rows, columns = (sample.tensors["places"].max(0) + 1).tolist()
        assert sample.pieces == (rows * columns,)
        assert rows * columns <= most
        patches = sample.tensors["patches"].reshape(rows, columns, 4, 4, 3).swapaxes(1, 2)
        patches = patches.reshape(4 * rows, 4 * columns, 3)
        found = [
            (y, x, flip)
            for flip in (False, True)
            for y in range(42 - 4 * rows)
            for x in range(31 - 4 * columns)
            if np.array_equal(patches[:, ::-1] if flip else patches, numbers[y : y + 4 * rows, x : x + 4 * columns])
        ]
        assert len(found) == 1
        places.add(found[0][:2])
        sides.add((rows, columns))
        flips += found[0][2]
    assert (len(places) > 20, len(sides) > 5, 10 < flips < 30) == (True, True, True)
    tiny = made(spec, png(tiles(3, 2)), 0).tensors
    assert (tiny["patches"].shape, int(tiny["label"])) == ((1, 48), 1)
    assert all(made(spec, data, k, limit).length <= limit for k, limit in itertools.product(range(5), (1, 2, 7, 33)))


def store_pictures(folder: Path, rows: Sequence[dict[str, Any]], spec: Any) -> tuple[str, Derived]:
    """A store with the pictures in two segments, and their sizes."""
    url = str(folder)
    record_dataset(open_store(url), "pictures", [as_table(rows[:60]), as_table(rows[60:])])
    return url, derive_sizes(url, "pictures", "train", spec, workers=1)


@pytest.fixture(scope="module")
def whole(spec: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with undamaged pictures."""
    return store_pictures(tmp_path_factory.mktemp("whole"), records(COUNT), spec)[0]


def flat(store: str, spec: Any, **options: Any) -> FlatLoader:
    given = {"forward_tokens": FORWARD, "batch": 24, "dataset": "pictures", "spec": spec, "seed": 5, "threads": 2}
    return open_flat_loader(store, **{**given, **options})


def take(loader: FlatLoader, steps: int) -> list[FlatForward]:
    """The forwards of some steps."""
    with loader:
        out: list[FlatForward] = []
        while sum(forward.last_of_step for forward in out) < steps:
            out.append(next(loader))
        return out


def samples(forwards: Sequence[FlatForward]) -> dict[int, tuple[int, str]]:
    """k -> row, and digest of the tensors; "" for a sample without content."""
    out = {}
    for forward in forwards:
        bounds = forward.bounds.tolist()
        for number, (k, row) in enumerate(zip(forward.k.tolist(), forward.row.tolist(), strict=True)):
            first, stop = bounds[number : number + 2]
            digest = hashlib.sha256(forward.parts["label"][number].numpy().tobytes())
            for name in ("patches", "places"):
                digest.update(forward.parts[name][0, first:stop].numpy().tobytes())
            assert k not in out
            out[k] = (row, digest.hexdigest() if stop > first else "")
    return out


def test_crops_are_equal_at_any_number_of_ranks_and_after_a_resume(whole: str, spec: Any) -> None:
    alone = samples(take(flat(whole, spec), 6))
    assert sorted(alone) == list(range(6 * 24))
    assert len({digest for _, digest in alone.values()}) > 138, "another crop of a picture in its second epoch"
    ranks = [take(flat(whole, spec, dp_rank=rank, dp_size=3), 6) for rank in range(3)]
    assert samples(list(itertools.chain.from_iterable(ranks))) == alone
    before, after = flat(whole, spec), flat(whole, spec)
    first = samples(take(before, 2))
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert first | samples(take(after, 4)) == alone


def test_damaged_pictures_are_named_and_shift_no_other(whole: str, spec: Any, tmp_path: Path) -> None:
    rows = records(COUNT)
    plain = [number for number in range(COUNT) if picture(number)[1].startswith(SIGNATURE)]
    early = dict(zip(plain[1::8], itertools.cycle(("text", "huge")), strict=False))
    late = dict(zip(plain[2::6], itertools.cycle(("flip", "zeros")), strict=False))
    for number, how in (early | late).items():
        rows[number]["data"] = damage(picture(number)[1], how)
    store, derived = store_pictures(tmp_path, rows, spec)
    assert derived.bad == len(early) > 5
    assert [reason.rpartition("(")[2].partition(":")[0] for _, reason in derived.names] == [
        rows[number]["name"] for number in early
    ]
    clean = samples(take(flat(whole, spec), 5))
    order = {k: row for k, (row, _) in clean.items()}
    ranks = [take(flat(store, spec, run="r", dp_rank=rank, dp_size=3), 5) for rank in range(3)]
    found = samples(list(itertools.chain.from_iterable(ranks)))
    assert sorted(found) == sorted(clean)
    for k, (row, digest) in found.items():
        assert order[k] in early or row == order[k], "a row that was not taken away is not replaced"
        if row == order[k]:
            assert digest == ("" if row in late else clean[k][1])
        else:
            assert row not in early
    plan = replay(Log(open_store(store), "runs/r", RUN_KINDS))
    assert plan is not None
    named = {row: ban.reason for ban in plan.bans for first, stop in ban.rows for row in range(first, stop)}
    assert set(named) == set(late) & {row for row, _ in found.values()}
    assert len(named) >= 8
    assert all("the picture is damaged" in reason and ".png" in reason for reason in named.values())


def test_what_cannot_be_opened_is_refused(whole: str, spec: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column of sizes") as caught:
        flat(whole, crops(patch=5))
    assert "fmscale dataset derive STORE/pictures --column size" in str(caught.value.remedy)
    others = as_table(records(9)).rename_columns(["a", "b", "c"])
    record_dataset(open_store(str(tmp_path)), "pictures", [others])
    with pytest.raises(ConfigError, match="the records in the split train of dataset pictures have no such") as error:
        flat(str(tmp_path), spec)
    assert (error.value.found, error.value.remedy) == ("name, data, folder", "They have a, b, c.")
    derive_sizes(whole, "pictures", "train", crops(column="dat"), workers=1)
    with pytest.raises(DataError, match="no record of pictures becomes a sample") as none:
        flat(whole, crops(column="dat"))
    assert none.value.found == f"{COUNT} are empty or bad, 0 longer than {FORWARD} tokens"
    assert "The spec reads name, dat, folder" in none.value.remedy


@pytest.mark.parametrize(
    ("line", "cause", "remedy"),
    [
        ("  spec: {kind: pictures.spec:Crop}", "a class that pictures.spec does not have", "mean pictures.spec:Crops?"),
        ("model: {kind: pictures.models:Classifier}", "No module named 'pictures.models'", "Install the package of"),
        ("objective: {kind: picture.objective:Classify}", "No module named 'picture'", "Install the package of"),
        ("  spec: {kind: pictures.spec:Crops}", "data.spec.classes is missing", "Give data.spec.classes"),
    ],
)
def test_a_class_that_is_not_installed_is_refused_at_its_place(
    package: str, tmp_path: Path, line: str, cause: str, remedy: str
) -> None:
    (tmp_path / "run.yaml").write_text(f"data:\n  sources: [{{dataset: pictures}}]\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml")
    assert f"{tmp_path}/run.yaml:3: " in str(caught.value)
    assert cause in caught.value.cause
    assert remedy in caught.value.remedy


def test_a_recorded_spec_imports_nothing(whole: str, spec: Any) -> None:
    text = spec_text(spec)
    assert open_spec(open_store(whole), text) == spec
    assert "antigravity" not in sys.modules
    with pytest.raises(ConfigError, match="by a class that no config here names") as caught:
        open_spec(open_store(whole), text.replace("pictures.spec", "antigravity"))
    assert "antigravity" not in sys.modules
    assert "--config" in caught.value.remedy
    with pytest.raises(ConfigError, match=r"No module named 'pictures\.gone'"):
        import_spec(text.replace("pictures.spec", "pictures.gone"))


def test_crops_longer_than_a_forward_go_by_the_rule(whole: str, spec: Any, caplog: pytest.LogCaptureFixture) -> None:
    sizes = [spec.size(row) for row in records(COUNT)]
    long = sum(size > 64 for size in sizes)
    with pytest.raises(DataError, match=f"{long} of the {COUNT} samples of pictures are too long") as caught:
        flat(whole, spec, forward_tokens=64)
    assert "the limit is 64" in str(caught.value.found)
    assert "too_long: cut or drop" in caught.value.remedy
    dropped = samples(take(flat(whole, crops(too_long="drop"), forward_tokens=64), 4))
    assert all(sizes[row] <= 64 for row, _ in dropped.values())
    assert f"{long} longer than 64 tokens" in caplog.text
    # Neither no limit nor one above a forward's length makes a crop that fits into none.
    for most in (None, 1000):
        cut = samples(take(flat(whole, crops(too_long="cut", max_tokens=most), forward_tokens=64), 4))
        assert any(sizes[row] > 64 for row, _ in cut.values())
        assert all(digest for _, digest in cut.values())
    shorter = take(flat(whole, crops(too_long="cut", max_tokens=16), forward_tokens=64), 4)
    assert max(int(forward.bounds.diff().max()) for forward in shorter) == 16


def test_a_run_that_goes_on_with_shorter_forwards_ends_with_the_reason(whole: str, spec: Any) -> None:
    take(flat(whole, spec, run="shorter"), 1)
    with (
        pytest.raises(DataError, match="a sample is longer than a forward") as caught,
        flat(whole, spec, run="shorter", forward_tokens=64) as loader,
    ):
        next(loader)
    assert "a forward takes 64" in str(caught.value.found)
    assert "Raise batch.forward_tokens" in caught.value.remedy


def test_padding_and_pictures_without_content_have_no_weight(whole: str, spec: Any) -> None:
    objective = own_class("pictures.objective:Classify")(smoothing=0.1)
    model = own_class("pictures.model:Classifier")(classes=3, patch=4, width=16).build(None)
    model.init_weights(torch.Generator().manual_seed(0))
    loader = flat(whole, spec)
    loss = objective(model, objective.collate(loader.filler(FORWARD)))
    loss.sum.backward()
    assert (loss.sum.item(), loss.count.item(), loss.metrics["accuracy"].item()) == (0, 0, 0)
    assert loss.by_sample.shape == (2, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    [forward, *_] = take(loader, 1)
    inputs = objective.collate(forward)
    alone = objective(model, inputs)
    assert alone.count == forward.rows > 1
    assert alone.sum.item() == pytest.approx(alone.by_sample[0].sum().item())
    # The same forward with a sample without content in front.
    forward.bounds = torch.cat((forward.bounds[:1], forward.bounds))
    forward.parts = {**forward.parts, "label": torch.cat((torch.tensor([0]), forward.parts["label"]))}
    more = objective(model, objective.collate(forward))
    assert (more.count, more.metrics["accuracy"]) == (alone.count, alone.metrics["accuracy"])
    assert more.by_sample.tolist() == [[0, *row] for row in alone.by_sample.tolist()]
