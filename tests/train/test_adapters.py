"""Adapter runs: the base stays frozen and stored once, and the adapter moves to any stage and number of ranks."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fmscale.checkpoint.catalog import list_checkpoints, load_manifest
from fmscale.checkpoint.checkpoint import Checkpoint, open_checkpoint
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.persist.retention import references
from fmscale.config import LoraConfig, load_config
from fmscale.errors import Conflict, FmscaleError
from fmscale.objectives import NextToken
from fmscale.store.log.retirement import replay, retire
from fmscale.store.open import open_store
from fmscale.train.preflight.preflight import check_run
from tests.helpers.ranks import run_ranks
from tests.train.engines import config_of, make_engine, microbatches
from tests.train.runs import events_of, make_corpus, state_at_begin, steps_of, train_here, write_config

COMMON = ("batch.uneven=fill", "checkpoint.every=1", "train.record_delivery=false")
ADAPTER = ("train.init=base", "adapter.rank=4", "adapter.alpha=64")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A corpus, and the run `base` with a checkpoint after 2 steps."""
    folder = tmp_path_factory.mktemp("corpus")
    store = make_corpus(folder)
    go(1, write_config(folder / "base", store), *COMMON, "train.run=base", "train.steps=2")
    return store


def go(size: int, path: Path, *overrides: str) -> dict[str, Any]:
    outcome: dict[str, Any] = run_ranks(train_here, size, str(path), overrides, timeout=120)[0]
    return outcome


def check_begin(ranks: list[Any], saved: Checkpoint, base: Checkpoint) -> None:
    """The ranks hold each element of the adapter once, as saved, and forward has these and the weights of the base."""
    seen: dict[Any, int] = {}
    forward = set()
    for name, state, start, values in (piece for rank in ranks for piece in rank):
        source = saved if name in saved.names else base
        if state == "forward":
            forward.add(name)
            assert torch.equal(values, source.tensor(name).view(-1).to(values.dtype)), name
        else:
            want = source.tensor(name, state).view(-1)[start : start + len(values)]
            assert torch.equal(values, want), (name, state)
            seen[name, state] = seen.get((name, state), 0) + len(values)
    assert seen == {(t.name, t.state): t.nbytes // 4 for t in saved.manifest.tensors}
    assert forward == {*saved.names, *base.names}


@pytest.mark.parametrize(
    ("kind", "precision", "moves"),
    [
        pytest.param("lora", "bf16", ((3, 3), (1, 1), (2, 0)), marks=pytest.mark.slow),
        ("lora", "bf16", ((1, 3), (1, 0))),
        pytest.param("dora", "bf16", ((1, 0), (2, 3), (3, 2)), marks=pytest.mark.slow),
        pytest.param("rslora", "fp32", ((3, 1), (1, 3), (2, 2)), marks=pytest.mark.slow),
    ],
)
def test_an_adapter_moves_to_any_size_and_stage(
    store: str, tmp_path: Path, kind: str, precision: str, moves: tuple[tuple[int, int], ...]
) -> None:
    path, base = write_config(tmp_path, store), open_checkpoint(f"{store}#base@2")
    for number, (size, stage) in enumerate(moves):
        overrides = (*COMMON, *ADAPTER, f"adapter.kind={kind}", f"train.precision={precision}", f"train.run={kind}")
        steps = (f"train.steps={2 * number + 2}", f"train.zero_stage={stage}")
        ranks = run_ranks(state_at_begin, size, str(path), (*overrides, *steps), timeout=120)
        if number:
            check_begin(ranks, open_checkpoint(f"{store}#{kind}@{2 * number}"), base)
        saved = open_checkpoint(f"{store}#{kind}@{2 * number + 2}")
        parts = {"lora_a", "lora_b"} | ({"magnitude"} if kind == "dora" else set())
        assert {name.rpartition(".")[2] for name in saved.names} == parts, "a checkpoint has the adapter alone"
        assert len(saved.names) == 2 * 7 * len(parts)
        assert all(sorted(saved.states(name)) == ["exp_avg", "exp_avg_sq", "weight"] for name in saved.names)
        assert saved.meta["base"] == {"address": "base@2", "digest": base.found.body["manifest"]["digest"]}
    losses = [record["loss"] for record in steps_of(tmp_path / kind).values()]
    assert len(losses) == 2 * len(moves)
    assert losses[0] > losses[-1]
    changed = [saved.tensor(name).abs().max() for name in saved.names if name.endswith("lora_b")]
    assert min(changed) > 0, "every layer's adapter has learnt"


def test_stages_and_sizes_train_the_same_adapter(store: str, tmp_path: Path) -> None:
    """First values come from the seed alone. Sums of gradients are grouped by ranks, so losses differ by rounding."""
    path, found = write_config(tmp_path, store), []
    for size, stage in ((1, 0), (2, 3)):
        run = f"same{stage}"
        go(
            size,
            path,
            *COMMON,
            *ADAPTER,
            f"train.run={run}",
            f"train.zero_stage={stage}",
            "train.steps=2",
            "model.dropout=0",
        )
        found.append([steps_of(tmp_path / run)[step]["loss"] for step in (1, 2)])
    torch.testing.assert_close(torch.tensor(found[0]), torch.tensor(found[1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("size", "stage"), [(1, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_resume_at_the_same_size_is_bit_exact(store: str, tmp_path: Path, size: int, stage: int) -> None:
    """With dropout of the adapter's inputs, recompute, and several forwards a step."""
    path = write_config(tmp_path, store)
    adapter = ("adapter.kind=dora", "adapter.dropout=0.2", "train.recompute=full", "model.dropout=0")
    common = (*COMMON, *ADAPTER, *adapter, f"train.zero_stage={stage}")
    go(size, path, *common, "train.run=whole", "train.steps=4")
    go(size, path, *common, "train.run=parts", "train.steps=2")
    go(size, path, *common, "train.run=parts", "train.steps=4")
    whole, parts = (steps_of(tmp_path / run) for run in ("whole", "parts"))
    names = ("loss", "grad_norm", "lr")
    assert [[parts[step][name] for name in names] for step in parts] == [
        [whole[step][name] for name in names] for step in whole
    ]
    ends = [open_checkpoint(f"{store}#{run}@4") for run in ("whole", "parts")]
    for name in ends[0].names:
        for state in ends[0].states(name):
            assert torch.equal(ends[0].tensor(name, state), ends[1].tensor(name, state)), (name, state)
    [event] = events_of(tmp_path / "parts", "initialised")
    assert event["address"] == "base@2"


def test_a_base_is_pinned_and_outlives_its_runs_retention(store: str, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    copy, path = str(tmp_path / "store"), write_config(tmp_path, str(tmp_path / "store"))
    for run in ("one", "two"):
        go(1, path, *COMMON, *ADAPTER, f"train.run={run}", "train.steps=1")
    go(1, path, *COMMON, *ADAPTER, "train.run=two", "train.steps=2")
    go(1, path, *COMMON, "train.run=base", "train.steps=4", "checkpoint.keep_last=1", "checkpoint.grace_seconds=0")
    backend = open_store(copy)
    assert [entry.step for entry in list_checkpoints(backend, "base")] == [2, 4], "step 3 alone has expired"
    log = run_log(backend, "base")
    [pinned] = list_checkpoints(backend, "base")[:1]
    state = replay(log)
    assert {"adapter one", "adapter two"} <= state.pins[pinned.entry]
    owners = [entry.body["owner"] for entry in log.entries() if entry.kind == "pin"]
    assert owners.count("adapter two") == 1, "a job that goes on finds its pin"
    with pytest.raises(Conflict, match="pinned"):
        retire(log, [pinned.entry], references)
    assert list_checkpoints(backend, "two")[-1].bytes < 0.2 * pinned.bytes


def refusal(store: str, folder: Path, *overrides: str) -> str:
    """The error with which the run ends before its first step, which `fmscale plan` finds too."""
    path = write_config(folder, store)
    planned = [str(problem) for problem in check_run(load_config(path, (*COMMON, *overrides)), 1).problems]
    with pytest.raises(FmscaleError) as refused:
        go(1, path, *COMMON, *overrides)
    return " / ".join([str(refused.value), *planned])


def test_what_cannot_be_adapted_is_refused(store: str, tmp_path: Path) -> None:
    go(1, write_config(tmp_path, store), *COMMON, *ADAPTER, "train.run=made", "train.steps=1")
    again = ("train.run=made", "train.steps=2")
    for overrides, texts in (
        (("train.run=a", "adapter.rank=4"), ("adapter needs a base", "train.init")),
        (("train.run=a", "adapter.rank=4", "train.init=./folder"), ("must be a run", "fmscale import ./folder")),
        (("train.run=a", "train.init=made"), ("has an adapter alone", "fmscale adapter merge")),
        (("train.run=a", *ADAPTER, "adapter.targets=[output]"), ("'output'", "Embedding and head never")),
        (("train.run=a", *ADAPTER, "model.dim=64"), ("dim 32 there, 64 here",)),
        (("train.run=a", *ADAPTER, "train.init=made", "adapter.alpha=8"), ("adapter.alpha: 8.0, recorded 64.0",)),
        ((*again, *ADAPTER, "adapter.alpha=8"), ("another adapter", "adapter.alpha: 64.0")),
        ((*again, *ADAPTER, "adapter.rank=8"), ("[4, 32] in the checkpoint, [8, 32] in the model",)),
        (("train.run=base", "train.steps=3", *ADAPTER), ("lora_a",)),
    ):
        found = refusal(store, tmp_path, *overrides)
        assert all(text in part for text in texts for part in found.split(" / ")), found
        assert len(found.split(" / ")) == 2


@pytest.mark.parametrize("gone", [True, False])
def test_a_base_that_was_removed_or_changed_is_refused(store: str, tmp_path: Path, gone: bool) -> None:
    shutil.copytree(store, tmp_path / "store")
    copy, path = str(tmp_path / "store"), write_config(tmp_path, str(tmp_path / "store"))
    go(1, path, *COMMON, *ADAPTER, "train.run=young", "train.steps=1")
    shutil.rmtree(tmp_path / "store" / "runs" / "base")
    if not gone:
        go(1, path, *COMMON, "train.run=base", "train.steps=2", "train.seed=1")
    found = refusal(copy, tmp_path, *ADAPTER, "train.run=young", "train.steps=2")
    assert ("base@2 was removed" if gone else "base@2 is another checkpoint now") in found
    assert "Restore run base" in found
    assert len(steps_of(tmp_path / "young")) == 1


def test_an_adapter_begins_with_another_on_the_same_base(store: str, tmp_path: Path) -> None:
    """As preferences after chats: the first run's adapter, fresh moments, the same base."""
    path = write_config(tmp_path, store)
    go(1, path, *COMMON, *ADAPTER, "train.run=chats", "train.steps=1")
    overrides = (*COMMON, *ADAPTER, "train.run=pairs", "train.init=chats", "train.steps=1")
    [held] = run_ranks(state_at_begin, 1, str(path), overrides, timeout=120)
    first, base = open_checkpoint(f"{store}#chats@1"), open_checkpoint(f"{store}#base@2")
    weights = [each for each in held if each[1] in ("weight", "forward")]
    for name, _, _, values in weights:
        source = first if name in first.names else base
        assert torch.equal(values, source.tensor(name).view(-1).to(values.dtype)), name
    assert not any(values.any() for _, state, _, values in held if state.startswith("exp_avg"))
    meta = open_checkpoint(f"{store}#pairs").meta
    assert (meta["base"]["address"], meta["init"]["address"]) == ("base@2", "chats@1")


def test_a_base_in_another_store_is_named_with_its_store(store: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(store, other, ignore=shutil.ignore_patterns("runs"))
    path, url = write_config(tmp_path, str(other)), open_store(store).url
    for steps in (1, 2):
        go(1, path, *COMMON, *ADAPTER, f"train.init={store}#base", "train.run=far", f"train.steps={steps}")
    meta = open_checkpoint(f"{other}#far").meta
    assert meta["base"]["address"] == f"{url}#base@2"
    assert (
        f"adapter {open_store(str(other)).url}#far"
        in replay(run_log(open_store(store), "base")).pins[open_checkpoint(f"{store}#base@2").found.entry]
    )


class Referenced(NextToken):
    """Next tokens, and the loss of the base in `before`, as preference losses take it."""

    def before(self, model: Any, inputs: Any, gather: Any) -> Any:
        from fmscale.models.lora import adapters_off

        with adapters_off(model):
            return [super(Referenced, self).__call__(model, each).sum.detach() for each in inputs]


def loss_with_reference(rank: int, size: int, stage: int, compiler: str | None) -> tuple[float, float, float]:
    """(loss of the base in `before`, loss of the first forward, loss after a step) on random weights of zero."""
    config = config_of(stage, "fp32", compile=compiler is not None)
    engine = make_engine(replace(config, adapter=LoraConfig(rank=2)), rank, size, compiler=compiler or "inductor")
    for piece in engine.base_pieces():
        generator = torch.Generator().manual_seed(len(piece.name))
        whole = torch.empty(piece.shape).normal_(0.0, 0.3, generator=generator).view(-1)
        piece.tensor.copy_(whole[piece.start : piece.start + piece.count])
    engine.restored(0)
    engine.objective = Referenced()
    out = []
    for _ in range(2):
        inputs = microbatches(1, rank, size, 1)
        [reference] = engine.before(inputs)
        loss = engine.forward(inputs[0])
        engine.backward(loss.sum, last=True)
        engine.step(0.1)
        out += [float(reference), float(loss.sum)]
    assert out[0] == out[2]
    return out[0], out[1], out[3]


@pytest.mark.parametrize(("stage", "compiler"), [(3, None), pytest.param(0, "aot_eager", marks=pytest.mark.slow)])
def test_the_adapter_switched_off_is_the_reference(stage: int, compiler: str | None) -> None:
    for reference, first, second in run_ranks(loss_with_reference, 2, stage, compiler, timeout=120):
        assert reference == first, "B is 0: the adapted model begins as its base"
        assert second != first


def test_plan_knows_what_an_adapter_needs(store: str, tmp_path: Path) -> None:
    path = write_config(tmp_path, store)
    config = load_config(path, (*COMMON, *ADAPTER, "train.run=planned", "train.precision=bf16"))
    found = check_run(config, 2)
    assert not found.problems
    assert found.begins == "at step 0, with the weights of base@2, under an adapter"
    base, forecast = open_checkpoint(f"{store}#base@2"), found.forecast
    frozen = sum(t.nbytes // 4 for t in base.manifest.tensors if t.state == "weight")
    go(1, path, *COMMON, *ADAPTER, "train.run=planned", "train.precision=bf16", "train.steps=1")
    saved = list_checkpoints(open_store(store), "planned")[-1]
    trained = sum(t.nbytes for t in load_manifest(open_store(store), saved).tensors) // 12
    assert (forecast.parameters, forecast.frozen) == (trained, frozen)
    assert forecast.checkpoint_bytes == saved.bytes == 12 * trained
    # At stage 3 a rank has half of the weights, and all of them while they are gathered.
    whole = 2 * (trained + frozen)
    assert [stage.parameters for stage in forecast.stages] == [whole, whole, whole, whole // 2 + whole]
