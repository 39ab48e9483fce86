"""Adapters of PEFT 0.21, both ways, and merged: files and logits that PEFT made (tests/fixtures/make_peft.py)."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fmscale.checkpoint.checkpoint import open_checkpoint
from fmscale.checkpoint.format.layout import Tensor
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.weights import save_weights
from fmscale.cli.main import build_app
from fmscale.config import LoraConfig, as_tree
from fmscale.infer import generate
from fmscale.infer.load import open_trained
from fmscale.models.hf import open_hf_folder
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.log.retirement import replay
from fmscale.store.open import open_store
from tests.infer.trained_run import store_texts

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "peft_0.21.zip"
EVERY = 8
KINDS = ("lora", "rslora", "dora")


def adapter(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["adapter", *words])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The archive's folder, and a store with its base as the run `base` and its adapters as runs named by kind."""
    folder = tmp_path_factory.mktemp("peft")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    url = store_texts(folder / "data")
    backend, model = open_store(url), open_hf_folder(folder / "base")
    data = {"sequence_length": 64, "sources": [{"dataset": "docs"}]}
    facts = {"config": {"model": as_tree(model.config), "data": data}, "vocab_size": 272, "step": 0, "version": 1}
    facts["tokenizer"] = open_dataset(backend, "docs").commits()[-1].tokenizer
    tensors = [Tensor(name, "weight", "float32", shape) for name, shape in model.shapes.items()]
    save_weights(backend, "base", tensors, model.read, {**facts, "types": {"*": "bfloat16"}, "template": None})
    for kind in KINDS:
        status, output = adapter("import", str(folder / kind), "--store", url, "--run", kind, "--base", "base")
        assert status == 0, output
    return folder, url


def logits(url: str, run: str) -> torch.Tensor:
    trained = open_trained(f"{url}#{run}")
    out: torch.Tensor = trained.model.head(
        trained.model(load_file(Path(url).parents[1] / "logits.safetensors")["tokens"])
    )
    return out[..., ::EVERY]


@pytest.mark.parametrize("kind", ["base", *KINDS])
def test_logits_are_those_of_peft(made: tuple[Path, str], kind: str) -> None:
    folder, url = made
    want = load_file(folder / "logits.safetensors")
    assert (logits(url, kind) - want[kind]).abs().max() <= 1e-5
    assert kind == "base" or (want[kind] - want["base"]).abs().max() > 0.5


def test_an_import_is_an_adapter_run(made: tuple[Path, str]) -> None:
    _, url = made
    configs = [open_checkpoint(f"{url}#{kind}").meta["config"]["adapter"] for kind in KINDS]
    wanted = [LoraConfig(kind=kind, rank=4, alpha=6) for kind in KINDS]  # type: ignore[arg-type]
    assert configs[1:] == [as_tree(each) for each in wanted[1:]]
    assert configs[0] == {**as_tree(wanted[0]), "targets": ["attention.wq", "attention.wv"]}
    opened = open_checkpoint(f"{url}#dora")
    assert opened.meta["base"]["digest"] == open_checkpoint(f"{url}#base").found.body["manifest"]["digest"]
    assert "template" in opened.meta
    owners = replay(run_log(opened.backend, "base")).pins[open_checkpoint(f"{url}#base").found.entry]
    assert {f"adapter {kind}" for kind in KINDS} <= owners
    trained = open_trained(f"{url}#dora")
    plain = trained.model.head(trained.model(torch.tensor([[7, 8, 9]])))[0, -1].argmax()
    assert generate(trained.model, [[7, 8, 9]], max_tokens=4)[0].tokens[0] == int(plain), "the cache reads adapters too"


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_what_peft_wrote(made: tuple[Path, str], tmp_path: Path, kind: str) -> None:
    folder, url = made
    out = tmp_path / "out"
    status, output = adapter("export", f"{url}#{kind}", "--to", str(out), "--base-model", str(folder / "base"))
    assert status == 0, output
    ours, theirs = (load_file(each / "adapter_model.safetensors") for each in (out, folder / kind))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6 if "magnitude" in name else 0, atol=0)
    written, before = (json.loads((each / "adapter_config.json").read_text()) for each in (out, folder / kind))
    assert written.pop("base_model_name_or_path") == str(folder / "base")
    # PEFT writes whole names for all-linear, and last parts for last parts.
    assert sorted({name.rpartition(".")[2] for name in before["target_modules"]}) == written.pop("target_modules")
    assert written == {**{name: before[name] for name in written}, "init_lora_weights": True}
    assert adapter("export", f"{url}#{kind}", "--to", str(out))[0] == 2, "a folder in use is not written"


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_in_fp32_computes_the_same(made: tuple[Path, str], kind: str) -> None:
    _, url = made
    status, output = adapter("merge", f"{url}#{kind}", "--run", f"merged-{kind}")
    assert status == 0, output
    assert "lost" not in output
    assert (logits(url, f"merged-{kind}") - logits(url, kind)).abs().max() <= 1e-5
    merged, base = open_checkpoint(f"{url}#merged-{kind}"), open_checkpoint(f"{url}#base")
    assert merged.manifest.tensors == base.manifest.tensors
    assert merged.meta["config"].keys() == {"model", "data"}
    assert not {"base", "types"} & merged.meta.keys()
    assert torch.equal(merged.tensor("norm.weight"), base.tensor("norm.weight"))
    assert adapter("merge", f"{url}#{kind}", "--run", f"merged-{kind}")[0] == 2, "a run is not written twice"


def test_a_merge_in_bf16_tells_what_it_lost(made: tuple[Path, str]) -> None:
    _, url = made
    status, output = adapter("merge", f"{url}#lora", "--run", "half", "--dtype", "bf16", "--json")
    assert status == 0, output
    told = json.loads(output)
    base, merged, whole = (open_checkpoint(f"{url}#{run}") for run in ("base", "half", "merged-lora"))
    assert {tensor.dtype for tensor in merged.manifest.tensors} == {"bfloat16"}
    lost = {}
    for layer in told["lost"]:
        was, now, right = (each.tensor(f"{layer}.weight") for each in (base, merged, whole))
        change = right - was
        lost[layer] = float((now.float() - was.bfloat16().float() - change).norm() / change.norm())
    assert told["lost"] == pytest.approx(lost)
    assert (told["lost_max"], told["lost_mean"]) == (
        pytest.approx(max(lost.values())),
        pytest.approx(sum(lost.values()) / 4),
    )
    assert 0 < told["lost_mean"] < 0.05
    text = adapter("merge", f"{url}#lora", "--run", "half2", "--dtype", "bf16")[1]
    assert f"bf16 lost {told['lost_mean']:.1%} of the adapter's change" in text


def changed(folder: Path, target: Path, config: dict[str, Any], tensors: dict[str, Any]) -> str:
    """A copy of an adapter's folder with other keys in its config, and other tensors (None removes)."""
    target.mkdir()
    written = json.loads((folder / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**written, **config}))
    kept = {**load_file(folder / "adapter_model.safetensors"), **tensors}
    save_file({k: v for k, v in kept.items() if v is not None}, target / "adapter_model.safetensors")
    return str(target)


Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("config", "tensors", "text"),
    [
        ({"peft_type": "IA3"}, {}, "another method"),
        ({"modules_to_save": ["lm_head"]}, {}, "lacks: modules_to_save"),
        ({"fan_in_fan_out": True}, {}, "lack: fan_in_fan_out"),
        ({"bias": "lora_only"}, {}, "lack: bias"),
        ({"init_lora_weights": "pissa"}, {}, "lack: init_lora_weights"),
        ({"rank_pattern": {"q_proj": 8}}, {}, "differ in their rank_pattern"),
        ({"r": "four"}, {}, "config of the adapter cannot be used"),
        ({}, {Q.format(2, "A"): torch.zeros(4, 16)}, "another base than base@0"),
        ({}, {Q.format(0, "A"): torch.zeros(4, 32)}, "another base than base@0"),
        ({}, {Q.format(0, "B"): None}, "layers.0.attention.wq.lora_b missing"),
        ({}, {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 16)}, "no linear layer of a block"),
        ({"use_dora": True}, {}, "magnitude missing"),
    ],
)
def test_what_cannot_be_imported_is_refused(
    made: tuple[Path, str], tmp_path: Path, config: dict[str, Any], tensors: dict[str, Any], text: str
) -> None:
    folder, url = made
    other = changed(folder / "lora", tmp_path / "other", config, tensors)
    status, output = adapter("import", other, "--store", url, "--run", "refused", "--base", "base")
    assert status == 2
    assert text.replace("lacks", "lack") in output
    assert "refused" not in open_store(url).list_names("runs")


def test_patterns_that_change_nothing_are_read(made: tuple[Path, str], tmp_path: Path) -> None:
    """Both options of PEFT at once: rsLoRA's scale under DoRA is an alpha of its own."""
    folder, url = made
    same = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 6}, "use_rslora": True}
    other = changed(folder / "dora", tmp_path / "other", same, {})
    assert adapter("import", other, "--store", url, "--run", "both", "--base", "base@0")[0] == 0
    assert open_checkpoint(f"{url}#both").meta["config"]["adapter"]["alpha"] == 12


def test_what_is_no_adapter_is_refused(made: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = made
    for words, text in (
        (("import", str(tmp_path), "--store", url, "--run", "no", "--base", "base"), "Not an adapter in PEFT's format"),
        (("import", str(folder / "lora"), "--store", url, "--run", "no", "--base", "lora"), "an adapter run itself"),
        (("import", str(folder / "lora"), "--store", url, "--run", "lora", "--base", "base"), "has a run of this name"),
        (("export", f"{url}#base", "--to", str(tmp_path / "out")), "The run has no adapter"),
        (("merge", f"{url}#base", "--run", "no"), "The run has no adapter"),
        (("merge", f"{url}#lora", "--run", "no", "--dtype", "fp8"), "Take fp32 or bf16"),
    ):
        status, output = adapter(*words)
        assert status == 2
        assert text in output
    result = CliRunner().invoke(build_app(), ["checkpoint", "export", f"{url}#lora", "--to", str(tmp_path / "hf")])
    assert result.exit_code == 2
    assert f"fmscale adapter merge {open_store(url).url}#lora@0 --run NAME" in " ".join(result.output.split())
    shown = CliRunner().invoke(build_app(), ["checkpoint", "show", f"{url}#lora"])
    assert "base@0" in shown.output
