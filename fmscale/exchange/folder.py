"""A folder in Hugging Face's format: config.json, safetensors in one file or several, tokenizer.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tokenizers import Tokenizer as Library

from fmscale.checkpoint.format.layout import Tensor
from fmscale.data.tokenizers.bpe import JsonTokenizer
from fmscale.errors import ConfigError
from fmscale.exchange.source import SPECIALS, ModelSource, order_ends, read_json
from fmscale.models.hf import open_hf_folder
from fmscale.store.datasets.templates import ChatTemplate

FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "chat_template.jinja",
)
"""Files beside the weights that an import keeps and an export writes again."""


def open_folder(path: Path) -> ModelSource:
    """Open a model's folder; reads no tensor. Raises ConfigError for a folder that lacks something, a damaged file, or
    a model that this decoder cannot be.
    """
    folder = open_hf_folder(path)
    try:
        files = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
        types = {name: str(folder.read(name).dtype).removeprefix("torch.") for name in folder.shapes}
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            "A file of the model cannot be read", found=f"{path}: {error}", remedy="Copy the folder again."
        ) from error
    if "tokenizer.json" not in files:
        slow = "tokenizer.model" if (path / "tokenizer.model").is_file() else "no tokenizer"
        raise ConfigError(
            "The folder has no tokenizer.json",
            found=f"{path}: {slow}",
            remedy="Make it: transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
        )
    JsonTokenizer(files["tokenizer.json"], f"{path}/tokenizer.json")  # or its error
    settings = _settings(files, f"{path}/")
    specials, template = _special_tokens(settings), template_of(files)
    library: Any = Library.from_buffer(files["tokenizer.json"])
    ends = [library.token_to_id(specials.get("eos_token", "")), *_ends(files, f"{path}/")]
    texts = {i: library.id_to_token(i) for i in ends if i is not None}
    return ModelSource(
        name=path.resolve().name,
        config=folder.config,
        tensors=[Tensor(name, "weight", types[name], shape) for name, shape in folder.shapes.items()],
        read=folder.read,
        tokenizer=files["tokenizer.json"],
        template=template,
        bos=_bos(library, specials.get("bos_token")),
        ends=order_ends([i for i in ends if i is not None], template, texts),
        files={name: data for name, data in files.items() if name != "tokenizer.json"},
    )


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that a template may name; each is text, or an object with its text as `content`."""
    tokens = {f"{name}_token": settings.get(f"{name}_token") for name in SPECIALS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in tokens.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def template_of(files: Mapping[str, bytes]) -> ChatTemplate | None:
    """The chat template among a model's files: chat_template.jinja before a setting, as in transformers; of several
    named templates the default. Raises ConfigError for several without a default.
    """
    settings, file = _settings(files), files.get("chat_template.jinja")
    text = settings.get("chat_template")
    if isinstance(text, list):
        named = {str(one.get("name")): one.get("template") for one in text if isinstance(one, dict)}
        if "default" not in named and len(named) > 1 and file is None:
            found, remedy = ", ".join(named), "Put the chosen text into chat_template.jinja in the folder."
            raise ConfigError("The model has several chat templates and no default", found=found, remedy=remedy)
        text = named.get("default", next(iter(named.values()), None))
    try:
        text = text if file is None else file.decode()
    except UnicodeDecodeError as error:
        found, remedy = f"chat_template.jinja: {error}", "Download it again."
        raise ConfigError("The chat template is not UTF-8 text", found=found, remedy=remedy) from error
    return ChatTemplate(text=text, special_tokens=_special_tokens(settings)) if isinstance(text, str) else None


def _settings(files: Mapping[str, bytes], where: str = "") -> dict[str, Any]:
    names = ("special_tokens_map.json", "tokenizer_config.json")
    return {key: value for name in names for key, value in read_json(files.get(name, b"{}"), where + name).items()}


def _bos(library: Any, bos: str | None) -> int | None:
    """BOS if the tokenizer puts it before each text. Transformers 5 does not look at `add_bos_token` beside it."""
    number, ids = library.token_to_id(bos) if bos is not None else None, library.encode("a").ids
    return number if ids and ids[0] == number else None


def _ends(files: Mapping[str, bytes], where: str) -> list[int]:
    """EOS of the generation config, or else of the config: a number or several."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(files.get(name, b"{}"), where + name).get("eos_token_id")
        if value is not None:
            return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
    return []
