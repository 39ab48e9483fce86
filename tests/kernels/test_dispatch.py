import json
import logging
from pathlib import Path

import pytest
import torch
import torch._dynamo
from fmscale.kernels import dispatch, rms_norm
from fmscale.kernels.dispatch import TunedEntry, TunedTable, bucket, choose, forced, launch_config, use_table
from fmscale.kernels.launch import TRITON_VERSION
from fmscale.kernels.rms_norm import configs as norm_configs
from fmscale.kernels.rope import configs as rope_configs
from torch._dynamo.testing import CompileCounter

from benchmarks.kernels.tune import write_table
from fmscale.errors import KernelError

CPU = torch.device("cpu")
BOTH = {"triton": None, "eager": None}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table, nothing announced, before and after each test."""
    for name in ("_tables", "_entries", "_announced"):
        monkeypatch.setattr(dispatch, name, {})
    monkeypatch.setattr(dispatch, "_ignored", set())
    monkeypatch.setattr(dispatch, "_settled", set())


def measured(backend: str, *, triton: str = TRITON_VERSION, **configs: dict[str, int]) -> TunedTable:
    entry = TunedEntry(op="op", bucket="float32 D64", backend=backend, configs=configs)
    return TunedTable(gpu="cpu", triton=triton, entries=(entry,), versions={"triton": triton})


def test_default_without_a_measurement() -> None:
    assert choose("op", "auto", CPU, "float32 D64", BOTH) == "eager"


def test_auto_takes_the_measured_fastest() -> None:
    use_table(measured("triton"))
    assert choose("op", "auto", CPU, "float32 D64", BOTH) == "triton"
    assert choose("op", "auto", CPU, "float32 D128", BOTH) == "eager"
    assert choose("other", "auto", CPU, "float32 D64", BOTH) == "eager"


def test_a_table_of_another_triton_does_not_count() -> None:
    use_table(measured("triton", triton="0.0.1"))
    assert choose("op", "auto", CPU, "float32 D64", BOTH) == "eager"


def test_a_later_table_replaces_the_earlier() -> None:
    use_table(measured("triton"))
    use_table(TunedTable(gpu="cpu", triton=TRITON_VERSION))
    assert choose("op", "auto", CPU, "float32 D64", BOTH) == "eager"


def test_the_fastest_that_can(caplog: pytest.LogCaptureFixture) -> None:
    """A measured winner that cannot compute this call is skipped, and the log has the reason."""
    use_table(measured("triton"))
    with caplog.at_level(logging.INFO, "fmscale.kernels"):
        assert choose("op", "auto", CPU, "float32 D64", {"triton": "odd strides", "eager": None}) == "eager"
    assert "triton was measured fastest but cannot serve this call: odd strides" in caplog.text


def test_each_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fmscale.kernels"):
        for D in (4, 4, 8, 4):
            rms_norm(torch.ones(2, D), torch.ones(D))
    why = "eager (default; not measured here, see `fmscale bench kernels --tune`)"
    assert [r.getMessage() for r in caplog.records] == [f"rms_norm on cpu, float32 D{D}: {why}" for D in (4, 8)]
    assert list(dispatch._announced) == [
        ("cpu", "rms_norm", "float32 D4"),
        ("cpu", "rms_norm", "float32 D8"),
    ]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_choice_is_logged_once(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: rms_norm(x, w), fullgraph=True, backend=backend, dynamic=True)
    with caplog.at_level(logging.INFO, "fmscale.kernels"):
        for tokens, D in ((3, 8), (5, 8), (5, 16), (9, 16)):
            compiled(torch.randn(tokens, D), torch.ones(D))
    said = [r.getMessage().partition(" (")[0] for r in caplog.records if r.name == "fmscale.kernels"]
    assert said == ["rms_norm on cpu, float32 D8: eager", "rms_norm on cpu, float32 D16: eager"]


def test_what_cannot_be_done_names_what_can() -> None:
    with pytest.raises(KernelError, match=r"no backend of that name.*'cuda'.*\['triton', 'eager'\]"):
        choose("op", "cuda", CPU, "", BOTH)
    with pytest.raises(KernelError, match=r'backend "triton" of op.*too wide.*Use backend=.eager.'):
        choose("op", "triton", CPU, "", {"triton": "too wide", "eager": None})


def test_configurations_forced_measured_default() -> None:
    choices = ({"BLOCK": 1}, {"BLOCK": 2})
    assert launch_config("op", "forward", CPU, "float32 D64", choices) == {"BLOCK": 1}
    use_table(measured("triton", forward={"BLOCK": 2}))
    assert launch_config("op", "forward", CPU, "float32 D64", choices) == {"BLOCK": 2}
    assert launch_config("op", "backward", CPU, "float32 D64", choices) == {"BLOCK": 1}
    with forced("op", "forward", {"BLOCK": 3}):
        assert launch_config("op", "forward", CPU, "float32 D64", choices) == {"BLOCK": 3}
    assert launch_config("op", "forward", CPU, "float32 D64", choices) == {"BLOCK": 2}


def test_a_measured_configuration_that_does_not_ship_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """A table of an earlier version, or an edited table, cannot bring back tiles that the gate refuses."""
    use_table(measured("triton", forward={"BLOCK": 2}))
    for _ in range(2):
        assert launch_config("op", "forward", CPU, "float32 D64", ({"BLOCK": 1},)) == {"BLOCK": 1}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "of forward, {'BLOCK': 2}, is none of this version's: {'BLOCK': 1} is used" in record.getMessage()


def test_no_table_changes_the_bits_of_a_weight_gradient() -> None:
    """The bits follow from the rows of a partial sum, a single choice for all machines."""
    assert all(len(norm_configs(D)["backward"]) == 1 for D in (128, 4096, 16384))
    assert len(rope_configs()["norm_backward"]) == 1


def test_tables_survive_a_file(tmp_path: Path) -> None:
    table = measured("triton", forward={"BLOCK": 2})
    path = write_table(table, tmp_path)
    assert path.name == f"cpu.triton-{TRITON_VERSION}.json"
    assert dispatch.read_table(path) == table
    assert list(tmp_path.iterdir()) == [path]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(KernelError, match=r"99.*--tune"):
        dispatch.read_table(path)


def test_every_shipped_table_can_be_read() -> None:
    for path in dispatch.TUNED.glob("*.json"):
        assert dispatch.read_table(path).entries, f"{path.name} holds no measurement"


def test_buckets_follow_the_model_not_the_batch() -> None:
    assert bucket(torch.bfloat16, D=4000, V=1) == "bfloat16 D4096 V1"
    assert bucket(torch.float32, D=4097) == "float32 D8192"


def test_auto_compiles_whole_and_once_for_any_token_count() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(lambda x, w: rms_norm(x, w), fullgraph=True, backend=counter, dynamic=True)
    for tokens in (3, 5, 9):
        x, w = torch.randn(tokens, 8), torch.ones(8)
        torch.testing.assert_close(compiled(x, w), rms_norm(x, w))
    assert counter.frame_count == 1
