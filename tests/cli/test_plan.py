"""`fmscale plan`: derived numbers, and all errors at once, with nothing started or written."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.config import SourceConfig
from fmscale.data.ingest import ingest
from fmscale.data.open import open_loader
from fmscale.data.sources import make_sources, open_order
from fmscale.store.open import open_store

LENGTH = 63
CONFIG = """
store: {{url: "{store}"}}
model: {{num_layers: 2, dim: 32, num_heads: 2, tied: true, max_seq_len: 64, vocab_size: null}}
data: {{sequence_length: 63, sources: [{{dataset: docs, weight: 3}}, {{dataset: more}}]}}
batch: {{global_batch: 24, micro_batch: 4}}
train: {{steps: 10, run: demo}}
evaluation: {{sets: [{{dataset: docs}}]}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two datasets of byte tokens."""
    root = tmp_path_factory.mktemp("plan")
    for name, size in (("docs", 40), ("more", 20)):
        folder = root / name
        folder.mkdir()
        for i in range(size):
            (folder / f"{i}.txt").write_text(f"document {i} of {name}. " * 20)
        url = str(root / "store")
        ingest([str(folder)], store=url, dataset=name, tokenizer="bytes", heldout=0.2, workers=1)
    return root / "store"


@pytest.fixture
def config(store: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(store=store))
    return path


@contextmanager
def mounted(*options: str | Path) -> Iterator[None]:
    """A mount, for a while."""
    made = subprocess.run(["mount", *map(str, options)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot mount here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(options[-1])], check=True)


@pytest.fixture
def closed(store: Path, tmp_path: Path) -> Iterator[Path]:
    """The store, mounted read-only: rights do not bind root."""
    path = tmp_path / "closed"
    path.mkdir()
    (store / "runs").mkdir(exist_ok=True)
    with mounted("--bind", store, path):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
        yield path


def plan(config: Path, *words: str) -> tuple[int, Any]:
    result = CliRunner().invoke(build_app(), ["plan", str(config), *words, "--json"])
    assert result.exit_code in (0, 2), result.output
    return result.exit_code, json.loads(result.stdout)


def causes(found: Any) -> str:
    return "\n".join(problem["cause"] for problem in found["problems"])


def test_numbers_follow_from_one_another(config: Path) -> None:
    status, found = plan(config, "--world", "3")
    derived = found["derived"]
    assert (status, found["problems"], found["notes"]) == (0, [], [])
    assert derived["batch"] == {
        "global_batch": 24,
        "micro_batch": 4,
        "accumulation": 2,
        "dp_size": 3,
        "forward_tokens": None,
    }
    assert (derived["tokens_per_step"], derived["tokens"]) == (24 * LENGTH, 240 * LENGTH)
    # Two blocks of 4 x 32 x 32 and 3 x 32 x 128, five norms, and one embedding for the 272 byte tokens.
    parameters = 2 * (4 * 32 * 32 + 3 * 32 * 128) + 5 * 32 + 272 * 32
    assert (derived["vocab_size"], derived["parameters"]) == (272, parameters)
    assert derived["checkpoint_bytes"] == 12 * parameters
    assert derived["stages"][2]["moments"] == 8 * -(-parameters // 3)
    assert found["begins"] == "at step 0"


def test_what_the_store_has_tells_rows_and_epochs(config: Path) -> None:
    _, found = plan(config)
    docs, more = found["sources"]
    assert (docs["share"], more["share"]) == (0.75, 0.25)
    assert docs["rows"] == docs["tokens"] // (LENGTH + 1)
    assert docs["epochs"] == pytest.approx(0.75 * 240 / docs["rows"])


def test_memories_that_are_given_lead_to_a_stage_and_to_warnings(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = plan(config, "schedule.warmup_steps=1")[1]
    assert (found["advice"]["stage"], found["advice"]["fits"], found["warnings"]) == (None, [None] * 4, [])
    words = ("--world", "16", "batch.global_batch=64", "launch.procs_per_node=4")
    found = plan(config, *words, "--device-memory", "80GB")[1]
    derived, advice = found["derived"], found["advice"]
    assert (advice["device_memory"], advice["stage"], advice["fits"]) == (80 * 10**9, 0, [True] * 4)
    assert derived["stages"][2]["between"] == derived["stages"][2]["wire"] > 0
    assert derived["snapshot_bytes_per_node"] == 4 * derived["checkpoint_bytes_per_rank"]
    little = plan(config, "--device-memory", "0.5 MiB", "--host-memory", "500MB")[1]
    assert little["advice"]["fits"] == [False] * 4
    assert little["advice"]["host_bytes"] == 512 * 2**20 + 12 * little["derived"]["parameters"]
    assert "stage 2 does not fit the memory of a device" in little["warnings"][0]
    assert "a node has 476.8 MiB of host memory" in little["warnings"][1]


def test_a_gpu_tells_its_memory(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=10**9))
    words: list[list[str]] = [[], ["train.device=cpu"], ["--device-memory", "2GB"]]
    found = [plan(config, *each)[1]["advice"]["device_memory"] for each in words]
    assert found == [10**9, None, 2 * 10**9]


@pytest.mark.parametrize("wrong", ["80", "much", "0GB"])
def test_a_memory_that_is_no_size_is_refused(config: Path, wrong: str) -> None:
    result = screen(config, "--device-memory", wrong)
    assert result.exit_code == 2
    assert "--device-memory is no size of a memory" in result.stderr


def test_a_pass_over_a_source_takes_the_requests_and_bytes_that_are_shown(config: Path, tmp_path: Path) -> None:
    """Against a loader that reads 16 units."""
    (tmp_path / "long.txt").write_text("a long text of bytes. " * 91_000)
    url = str(tmp_path / "store")
    ingest([str(tmp_path / "long.txt")], store=url, dataset="long", tokenizer="bytes", workers=1)
    source = plan(
        config, f"store.url={url}", "data.sources=[{dataset: long}]", "evaluation.sets=[]", "data.sequence_length=62"
    )[1]["sources"][0]
    assert source["epoch_requests"] == 16
    backend = open_store(url)
    with open_loader(backend, dataset="long", sequence_length=63, batch=source["rows"], prefetch=False) as it:
        requests, sizes = (dict(each) for each in (backend.requests.count, backend.requests.bytes))
        next(it)
    assert 16 <= backend.requests.count["get_range"] - requests.get("get_range", 0) <= 16 + 2
    read = backend.requests.bytes["get_range"] - sizes.get("get_range", 0)
    assert source["epoch_bytes"] == pytest.approx(read, rel=0.03)


def test_reads_needed_at_a_speed(config: Path) -> None:
    derived = plan(config, "--tokens-per-second", "63e6")[1]["derived"]
    # 16-bit tokens, with a further token a row for the labels.
    assert derived["read_bytes_per_second"] == pytest.approx(2 * 64e6)
    assert derived["seconds"] == pytest.approx(240 * LENGTH / 63e6)
    slow = plan(config, "--mfu", "0.5", "--device", "NVIDIA H100 80GB HBM3", "--world", "2")[1]["derived"]
    assert slow["tokens_per_second"] == pytest.approx(0.5 * 2 * 989e12 / slow["flops_per_token"])


def test_a_model_of_the_users_own_is_counted_and_its_flops_are_not_known(config: Path) -> None:
    own = "model={kind: 'tests.helpers.own:Bigrams', width: 4}"
    status, found = plan(config, own, "--mfu", "0.5", "--device", "H100")
    assert (status, found["problems"]) == (0, [])
    assert (found["derived"]["vocab_size"], found["derived"]["parameters"]) == (272, 2 * 4 * 272)
    assert found["derived"]["stages"][0]["moments"] == 8 * 2 * 4 * 272
    assert (found["derived"]["flops_per_token"], found["derived"]["tokens_per_second"]) == (None, None)
    assert "FLOPs of model tests.helpers.own:Bigrams are not known" in found["notes"][0]
    assert found["config"]["model"]["kind"] == "tests.helpers.own:Bigrams"
    shown = CliRunner().invoke(build_app(), ["plan", str(config), own])
    assert shown.exit_code == 0, shown.output
    wrong = plan(
        config,
        "model={kind: 'tests.helpers.own:Bigrams', width: 13, vocab_size: 100, max_seq_len: 8}",
        "objective={kind: 'tests.helpers.own:Nothing'}",
    )
    lacking = [kind for kind in ("tensorboard", "wandb", "mlflow") if find_spec(kind) is None]
    sinks = ", ".join(f"{{kind: {kind}}}" for kind in ("jsonl", *lacking))
    found = plan(config, f"metrics.sinks=[{sinks}]")[1]["problems"]
    assert [problem["found"] for problem in found] == lacking
    for part in ("13 is no width", "vocab_size is smaller", "longer than the model's", "lacks the method collate"):
        assert part in causes(wrong[1])


def test_everything_that_would_fail_is_listed_at_once_and_nothing_is_written(config: Path, store: Path) -> None:
    before = sorted(store.rglob("*"))
    wrong = (
        "batch.global_batch=25",
        "data.sequence_length=100",
        "model.vocab_size=100",
        "evaluation.sets.0.split=test",
        "data.sources.1.dataset=mroe",
        "train.resume=other@7",
    )
    status, found = plan(config, *wrong, "--world", "2")
    assert status == 2
    for part in (
        "the batch does not come out",
        "longer than the model's max_seq_len",
        "smaller than the vocabulary of the tokenizer",
        "has no such split",
        "has no dataset of this name",
        "names a checkpoint that is not there",
    ):
        assert part in causes(found)
    assert len(found["problems"]) == len(wrong)
    assert all(problem["remedy"] for problem in found["problems"])
    assert sorted(store.rglob("*")) == before


def test_a_run_without_a_length_would_fail(config: Path) -> None:
    status, found = plan(config, "train.steps=null")
    assert status == 2
    assert "does not say how long the run is" in causes(found)


def test_a_run_that_was_recorded_with_other_data_would_fail(config: Path, store: Path) -> None:
    backend = open_store(str(store))
    specs = [SourceConfig(dataset="docs"), SourceConfig(dataset="more")]
    open_order(backend, "recorded", make_sources(backend, specs, sequence_length=LENGTH + 1, seed=7), specs)
    status, found = plan(config, "train.run=recorded")
    assert status == 2
    assert "run recorded was recorded with other data" in causes(found)


def test_a_store_that_is_no_folder_would_fail(config: Path, tmp_path: Path) -> None:
    status, found = plan(config, f"store.url={tmp_path / 'nowhere'}", "model.vocab_size=512")
    assert (status, found["sources"], found["derived"]["vocab_size"]) == (2, [], 512)
    assert "there is no such folder" in causes(found)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_that_is_not_written_would_fail(config: Path, store: Path, closed: Path) -> None:
    for url, cause in (
        (str(closed), "this cannot be written"),
        (f"file://{store}?read_only", "says read_only"),
    ):
        status, found = plan(config, f"store.url={url}")
        assert (status, len(found["problems"]), len(found["sources"])) == (2, 1, 2)
        assert cause in causes(found)


def test_a_store_of_others_with_a_folder_for_the_run_does(config: Path, closed: Path, tmp_path: Path) -> None:
    with mounted("--bind", str(tmp_path), closed / "runs"):
        status, found = plan(config, f"store.url={closed}")
    assert (status, found["problems"]) == (0, [])


def test_metrics_in_a_place_that_is_no_folder_would_fail(config: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").touch()
    for folder in (config, config / "below", tmp_path):
        status, found = plan(config, f"train.folder={folder}")
        assert (status, len(found["problems"])) == (2, 1)
        assert "this is not a folder" in causes(found)
    assert plan(config, f"train.folder={tmp_path / 'new' / 'folder'}")[0] == 0


def test_more_warmup_than_steps_is_warned_of(config: Path) -> None:
    status, found = plan(config, "schedule.warmup_steps=10", "optimizer.lr=1e-3")
    assert (status, len(found["warnings"])) == (0, 1)
    assert "is 10, and the run has 10 steps: the learning rate comes to 0.00091" in found["warnings"][0]
    assert plan(config, "schedule.warmup_steps=9")[1]["warnings"] == []


def test_a_source_that_is_read_many_times_is_warned_of(config: Path) -> None:
    status, found = plan(config, "train.steps=200")
    passes = {one["dataset"]: one["epochs"] for one in found["sources"]}
    assert passes["docs"] > 4
    assert status == 0
    warned = next(text for text in found["warnings"] if "dataset docs" in text)
    assert f"{passes['docs']:.0f} times" in warned
    steps = int(warned.rpartition("train.steps ")[2].rstrip("."))
    again = plan(config, f"train.steps={steps}")[1]
    assert [text for text in again["warnings"] if "dataset docs" in text] == []
    passes = {one["dataset"]: one["epochs"] for one in again["sources"]}
    assert 3.9 < passes["docs"] <= 4, "the steps that are named read it four times"


def test_a_store_that_does_not_answer_is_asked_once(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    url = "store.url='s3://b/p?endpoint=http://127.0.0.1:9&region=us-east-1'"
    status, found = plan(config, url, "store.deadline=1", "model.vocab_size=512")
    assert (status, len(found["notes"])) == (0, 1)
    assert "not looked into any further" in found["notes"][0]
    status, found = plan(config, url, "store.deadline=1")
    assert status == 2
    assert "size of the vocabulary is not known" in causes(found)


def test_a_run_that_goes_on_reads_what_it_recorded(tmp_path: Path) -> None:
    backend = open_store(str(tmp_path / "store"))

    def ingest_more(name: str, text: str) -> None:
        folder = tmp_path / f"{name}-{text}"
        folder.mkdir()
        (folder / "a.txt").write_text(f"{text} of {name}. " * 200)
        ingest([str(folder)], store=backend.url, dataset=name, tokenizer="bytes", workers=1)

    for name in ("docs", "more"):
        ingest_more(name, "one")
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(store=tmp_path / "store").partition("evaluation:")[0])
    _, fresh = plan(path)
    specs = [SourceConfig(dataset="docs", weight=3), SourceConfig(dataset="more")]
    open_order(backend, "demo", make_sources(backend, specs, sequence_length=LENGTH + 1, seed=0), specs)
    ingest_more("docs", "two")
    status, found = plan(path)
    assert (status, found["problems"], found["sources"]) == (0, [], fresh["sources"])
    (note,) = found["notes"]
    assert "reads commits [0] of dataset docs, as it began with them, and not [1]" in note
    assert plan(path, "train.run=another")[1]["sources"] != fresh["sources"]
    status, found = plan(path, "data.sources.0.commits=[1]")
    assert status == 2
    assert [p["found"] for p in found["problems"]] == ["data.sources.0.commits: recorded [0], asked for [1]"]
    assert found["notes"] == []


def test_a_share_of_an_unknown_peak_is_refused(config: Path) -> None:
    result = CliRunner().invoke(build_app(), ["plan", str(config), "--mfu", "0.4", "--device", "abacus"])
    assert result.exit_code == 2
    assert "this device's is not known" in result.stderr


def screen(config: Path, *words: str) -> Any:
    """Output of a terminal, in its order."""
    return CliRunner().invoke(build_app(), ["plan", str(config), *words])


def test_the_screen_has_what_would_fail_first_then_the_numbers_and_no_config(config: Path) -> None:
    found = screen(config, "data.sequence_length=100", "--world", "2")
    assert found.exit_code == 2
    order = (
        "1 to correct before this run can start:",
        "error: ",
        "remedy: Shorten the rows",
        "warning: schedule.warmup_steps is 100, and the run has 10 steps",
        "24 rows = micro_batch 4 x accumulation 3 x 2 ranks",
        "give --tokens-per-second, or --mfu and --device",
        "2 *",
        "dataset",
    )
    places = [found.output.index(part) for part in order]
    assert places == sorted(places)
    assert "global_batch: 24" not in found.output
    assert "ranks" in found.stdout.splitlines()[0]


def test_every_key_is_shown_last_if_asked_for(config: Path) -> None:
    found = screen(config, "schedule.warmup_steps=1", "--config")
    assert (found.exit_code, found.stderr) == (0, "")
    numbers, _, shown = found.stdout.partition("\nstore:\n")
    assert "ranks" in numbers.splitlines()[0]
    assert yaml.safe_load(f"store:\n{shown}") == plan(config, "schedule.warmup_steps=1")[1]["config"]
