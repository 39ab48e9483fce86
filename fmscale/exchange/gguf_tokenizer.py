"""The tokenizer in a GGUF file's metadata: a byte-level BPE as tokenizer.json."""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from fmscale.data.tokenizers.bpe import JsonTokenizer
from fmscale.errors import ConfigError

CONTROL, USER = 3, 4
"""Kinds of tokens that are found in a text before it is split into words: special tokens, and others."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,DIGITS}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS: Mapping[str, Any] = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "llama-bpe": [pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", "3")), "isolated")],
    "qwen2": [pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", "1")), "isolated")],
}
"""Splits into words by the pre-tokenizer's name, before the bytes; those of GPT-2 follow where an expression splits
none.
"""


def specials_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by their names in a template."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"{name}_token": fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {name: fields["tokenizer.ggml.tokens"][i] for name, i in ids.items() if i is not None}


def tokenizer_of(fields: Mapping[str, Any], bos: int | None, where: str) -> JsonTokenizer:
    """The file's tokenizer, which puts `bos` before a text in other software. Raises ConfigError for a vocabulary that
    is no byte-level BPE, and for words that are not known here.
    """
    kind, words = fields.get("tokenizer.ggml.model"), str(fields.get("tokenizer.ggml.pre"))
    if kind != "gpt2" or words not in WORDS:
        kinds = {"gpt2": f"words of {words}", "llama": "a SentencePiece vocabulary"}
        raise ConfigError(
            "The file has a tokenizer that is not read from GGUF",
            found=f"{where}: {kinds.get(str(kind), kind)}",
            remedy="Take the model's folder in Hugging Face's format: it has tokenizer.json.",
        )
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    model = models.BPE(
        {token: i for i, token in enumerate(tokens)},
        [tuple(merge.split(" ", 1)) for merge in merges],
        ignore_merges=words == "llama-bpe",
    )
    library: Any = Tokenizer(model)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words in ("gpt-2", "smollm"))
    library.pre_tokenizer = pre_tokenizers.Sequence([*WORDS[words], level])
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    library.decoder = decoders.ByteLevel()
    found = list(zip(tokens, fields["tokenizer.ggml.token_type"], strict=True))
    library.add_special_tokens([AddedToken(token, special=True) for token, of in found if of == CONTROL])
    library.add_tokens([AddedToken(token, normalized=False) for token, of in found if of == USER])
    plain = JsonTokenizer(library.to_str().encode(), where)
    return JsonTokenizer(plain.to_plain_json(bos), where)
