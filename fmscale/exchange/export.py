"""Files that Hugging Face's libraries need beside a run's weights: as the model was imported, or made from the run."""

import json
from collections.abc import Mapping, Set
from typing import Any

from fmscale.checkpoint.base import BASE
from fmscale.checkpoint.checkpoint import Checkpoint
from fmscale.checkpoint.read.meta import decoder_section
from fmscale.config import ModelConfig
from fmscale.data.tokenizers.bpe import JsonTokenizer
from fmscale.data.tokenizers.tokenizer import from_json
from fmscale.errors import ConfigError
from fmscale.exchange.folder import FILES, template_of
from fmscale.exchange.source import read_json
from fmscale.infer.load import run_framing
from fmscale.models.hf import from_hf_config, hf_config, hf_names
from fmscale.store.datasets.files import load_file
from fmscale.store.datasets.templates import load_template
from fmscale.store.datasets.tokenizers import load_tokenizer


def hf_files(opened: Checkpoint, dtype: str | None = None) -> dict[str, Any]:
    """Arguments of `export_checkpoint` for `hf`: names, files and types. `dtype` is the type of all weights if given.

    BOS and EOS are those of the run's data, as in `fmscale generate`. A run that began with an imported model has the
    files of that model, changed only where the run differs. Raises ConfigError for a checkpoint of no decoder.
    """
    meta = opened.meta
    if BASE in meta:
        address = f"{opened.backend.url}#{opened.run}@{opened.step}"
        raise ConfigError(
            "the checkpoint has an adapter alone, and Hugging Face's format whole weights",
            found=f"base {meta[BASE]['address']}",
            remedy=f"`fmscale adapter merge {address} --run NAME`, then export NAME; or `fmscale adapter export`.",
        )
    missing = {"config", "vocab_size", "tokenizer"} - meta.keys()
    if missing:
        found, remedy = f"meta without {', '.join(sorted(missing))}", "Export it as safetensors or dcp."
        raise ConfigError("the checkpoint does not say which model it is of", found=found, remedy=remedy)
    model = decoder_section(meta, "an export to Hugging Face")
    data = load_tokenizer(opened.backend, meta["tokenizer"])
    tokenizer = from_json(data)
    bos, eos = run_framing(opened.backend, meta, tokenizer)
    ends = {"bos_token_id": bos, "eos_token_id": eos}
    scored = False
    if "files" in meta:
        kept = [name for name in FILES if name in meta["files"]]  # a stranger's store may name places elsewhere
        files = {name: load_file(opened.backend, meta["files"][name]) for name in kept}
        scored = from_hf_config(read_json(files.get("config.json", b"{}"), "config.json")).score
        files |= {"tokenizer.json": data, **_changed(files, model, meta, ends, dtype)}
    else:
        files = {"config.json": _json(hf_config(model, meta["vocab_size"], bos=bos, eos=eos))}
        files["generation_config.json"] = _json(ends)
        if isinstance(tokenizer, JsonTokenizer):  # Hugging Face's libraries have no byte tokenizer
            files["tokenizer.json"] = tokenizer.to_plain_json(bos)
            files["tokenizer_config.json"] = _json(tokenizer.hf_config(bos, eos))
    if meta.get("template") and isinstance(tokenizer, JsonTokenizer):
        files |= _with_template(files, load_template(opened.backend, meta["template"]).text)
    names: dict[str, str | None] = {**hf_names(model)}
    if model.score:
        names["output.weight"] = None
        if not scored:  # a reward model of others has its filler
            files |= _with_filler(files, tokenizer.specials, {eos, *meta.get("ends", ())})
    return {"names": names, "files": files, "types": meta.get("types")}


def _changed(
    files: Mapping[str, bytes],
    model: ModelConfig,
    meta: Mapping[str, Any],
    ends: Mapping[str, int | None],
    dtype: str | None,
) -> dict[str, bytes]:
    """The imported files that are no longer right: another model or type, or an end of the turn that generation does
    not stop at.
    """
    changed: dict[str, bytes] = {}
    config = read_json(files.get("config.json", b"{}"), "config.json")
    size = meta["vocab_size"]
    then, now = (hf_config(one, size, bos=None, eos=None) for one in (from_hf_config(config), model))
    new = {name: value for name, value in now.items() if value != then.get(name) and name != "initializer_range"}
    types = {name: dtype for name in ("dtype", "torch_dtype") if dtype and config.get(name, dtype) != dtype}
    if new or types:
        changed["config.json"] = _json({**config, **new, **types})
    generation = read_json(files.get("generation_config.json", b"{}"), "generation_config.json")
    stops = generation.get("eos_token_id", config.get("eos_token_id"))
    stops = stops if isinstance(stops, list) else [stops]
    if "data" in meta["config"] and ends["eos_token_id"] not in stops:
        changed["generation_config.json"] = _json({**generation, "eos_token_id": ends["eos_token_id"]})
    return changed


def _with_template(files: Mapping[str, bytes], text: str) -> dict[str, bytes]:
    """chat_template.jinja, unless the imported files have this template."""
    if (there := template_of(files)) and there.text == text:
        return {}
    config = read_json(files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    # transformers renders a chat first and tokenises the text: names of special tokens in it must be tokens.
    config = {**config, "split_special_tokens": False}
    return {"chat_template.jinja": text.encode(), "tokenizer_config.json": _json(config)}


def _with_filler(files: Mapping[str, bytes], specials: Mapping[str, int], ends: Set[int | None]) -> dict[str, bytes]:
    """The files with a token that fills the texts of a batch: transformers reads the score at the last token that is
    another, so it must be none that ends a text. The model's own filler, or else a special token; without any
    transformers takes a text at a time.
    """
    config = read_json(files["config.json"], "config.json")
    settings = read_json(files.get("tokenizer_config.json", b"{}"), "tokenizer_config.json")
    named = settings.get("pad_token")
    own = specials.get(named["content"] if isinstance(named, dict) else named or "")
    found = (config.get("pad_token_id"), own, *sorted(specials.values()))
    filler = next((i for i in found if i is not None and i not in ends), None)
    changed = {"config.json": _json({**config, "pad_token_id": filler})}
    if "tokenizer_config.json" in files:
        text = next((name for name, i in specials.items() if i == filler), None)
        changed["tokenizer_config.json"] = _json({**settings, "pad_token": text})
    return changed


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
