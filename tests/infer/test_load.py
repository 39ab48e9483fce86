import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fmscale.cli.main import build_app
from fmscale.errors import ConfigError, DataError
from fmscale.infer.heldout import files, stored_documents
from fmscale.infer.load import open_trained
from fmscale.models import Decoder
from fmscale.store.open import open_store
from tests.infer.trained_run import TEXTS, save_run, store_texts
from tests.models.models import tokens


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Decoder]:
    url = store_texts(tmp_path_factory.mktemp("infer"), bos=True)
    return url, save_run(url, "run", (10, 20))


def test_a_run_is_opened_at_its_newest_checkpoint_or_a_step(made: tuple[str, Decoder]) -> None:
    url, model = made
    trained = open_trained(f"{url}#run")
    row = tokens(1, 20)
    assert (trained.run, trained.step, trained.dataset, trained.sequence_length) == ("run", 20, "docs", 64)
    assert torch.equal(trained.model.head(trained.model(row)), model.head(model(row)))
    assert trained.model.output.weight is trained.model.tok_embeddings.weight
    assert not trained.model.training
    assert (trained.bos, trained.eos, trained.encode("a")) == (256, 257, [256, 97])
    earlier = open_trained(f"{url}#run@10", precision="bf16")
    assert earlier.step == 10
    model.init_weights(torch.Generator().manual_seed(10))
    assert torch.equal(earlier.model.output.weight, model.output.weight.to(torch.bfloat16))


def test_what_cannot_be_opened_is_refused(made: tuple[str, Decoder]) -> None:
    url, _ = made
    with pytest.raises(ConfigError, match="no run of this name") as refused:
        open_trained(f"{url}#runn")
    assert refused.value.remedy == "Did you mean run?"
    open_store(url).put_if_absent("runs/young/log/note", b"")
    with pytest.raises(ConfigError, match="Run young has no checkpoint yet"):
        open_trained(f"{url}#young")
    with pytest.raises(ConfigError, match="no such checkpoint") as refused:
        open_trained(f"{url}#run@15")
    assert "10, 20" in refused.value.remedy
    with pytest.raises(ConfigError, match="precision"):
        open_trained(f"{url}#run", precision="fp8")
    save_run(url, "narrow", (1,), vocab_size=200)
    with pytest.raises(ConfigError, match="vocabulary of run narrow is smaller") as refused:
        open_trained(f"{url}#narrow")
    assert refused.value.found == "200, the tokenizer has 272"


def test_a_model_of_the_users_own_is_refused_and_its_module_is_not_imported(made: tuple[str, Decoder]) -> None:
    url, _ = made
    config = {"model": {"kind": "antigravity:Model"}, "data": {"sources": [{"dataset": "docs"}]}}
    save_run(url, "own", (1,), config=config)
    with pytest.raises(ConfigError, match="needs a model of kind decoder") as refused:
        open_trained(f"{url}#own")
    assert refused.value.found == "model.kind: antigravity:Model"
    result = CliRunner().invoke(build_app(), ["checkpoint", "export", f"{url}#own", "--to", url, "--format", "hf"])
    assert result.exit_code == 2
    assert "--format safetensors" in result.output
    assert "antigravity" not in sys.modules


def test_stored_documents_are_the_texts(made: tuple[str, Decoder], tmp_path: Path) -> None:
    url, _ = made
    trained = open_trained(f"{url}#run")
    framing = {"bos": trained.bos, "eos": trained.eos}
    held, rest = (
        list(stored_documents(trained.backend, "docs", split, trained.tokenizer, **framing))
        for split in ("heldout", "train")
    )
    assert held
    assert rest
    assert {Path(one.name).name: one.text.decode() for one in [*held, *rest]} == TEXTS
    for one in held:
        assert (one.tokens[0], one.tokens[-1], one.bos) == (256, 257, True)
        assert bytes(one.tokens[1:-1].tolist()) == one.text
    limited = stored_documents(trained.backend, "docs", "heldout", trained.tokenizer, **framing, limit=1)
    assert [one.name for one in limited] == [held[0].name]
    (tmp_path / "one.txt").write_text(TEXTS["03.txt"])
    (given,) = files([tmp_path / "one.txt"], trained.tokenizer, **framing)
    same = next(one for one in [*held, *rest] if one.name.endswith("03.txt"))
    assert (given.text, given.tokens.tolist(), given.bos) == (same.text, same.tokens.tolist(), True)


def test_a_dataset_with_another_tokenizer_is_encoded_anew(made: tuple[str, Decoder], tmp_path: Path) -> None:
    url, _ = made
    trained = open_trained(f"{url}#run")
    other = store_texts(tmp_path, tokenizer="bpe:300")
    found = list(
        stored_documents(open_store(other), "docs", "heldout", trained.tokenizer, bos=trained.bos, eos=trained.eos)
    )
    for one in found:
        assert one.text.decode() == TEXTS[Path(one.name).name]
        assert one.tokens.tolist() == [256, *one.text, 257]


def test_a_split_that_is_not_there_is_refused(made: tuple[str, Decoder], tmp_path: Path) -> None:
    trained = open_trained(f"{made[0]}#run")
    with pytest.raises(DataError, match="no documents of this split") as refused:
        list(stored_documents(trained.backend, "docs", "test", trained.tokenizer, bos=None, eos=None))
    assert refused.value.remedy.startswith("It has heldout, train;")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        list(files([tmp_path / "binary"], trained.tokenizer, bos=None, eos=None))
