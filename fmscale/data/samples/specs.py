"""Specs by kind: from the config to a spec, and from a spec to the JSON in a view and back."""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from fmscale.config.kinds import kind_of, own_class
from fmscale.config.reader.load import load_section
from fmscale.config.reader.tree import YamlTable, parse
from fmscale.config.schema import as_tree
from fmscale.config.spec import RenderedSpec, TextSpec
from fmscale.data.samples.protocol import Spec
from fmscale.data.samples.rendered import RenderedSamples
from fmscale.data.samples.rows import RowSamples
from fmscale.data.samples.text import TextSamples
from fmscale.data.tokenizers.protocol import Tokenizer
from fmscale.data.tokenizers.tokenizer import from_json, load_tokenizer
from fmscale.errors import ConfigError, FormatError
from fmscale.store.backends.protocol import Backend
from fmscale.store.datasets.dataset import open_dataset
from fmscale.store.datasets.tokenizers import load_tokenizer as stored_tokenizer
from fmscale.store.datasets.tokenizers import store_tokenizer
from fmscale.store.digest import canonical_json

MEMBERS = ("version", "columns", "parts", "too_long", "size", "decode", "make")
"""Members that a spec must have."""
SIZELESS = ("too_long", "max_tokens", "reference")
"""Fields of a spec that do not change its sizes."""


def make_spec(config: Any, backend: Backend, *, limit: int, tokenizers: Sequence[str] = ()) -> Spec:
    """The spec of a config's section for forwards of `limit` tokens; `tokenizers` are digests of token datasets' in
    the same run.

    Raises ConfigError for a class of the user's own that is no spec or cannot be told where to cut, or for a text
    without a tokenizer.
    """
    if isinstance(config, RenderedSpec):
        cut = min(config.max_tokens or limit, limit) if config.too_long == "cut" else None
        return RenderedSamples(too_long=config.too_long, max_tokens=cut, reference=config.reference)
    if not isinstance(config, TextSpec):
        return _cut_to(limit, _own(config))
    tokenizer = text_tokenizer(config, backend, tokenizers)
    return TextSamples(
        field=config.field,
        tokenizer=tokenizer.digest,
        bos=_special(tokenizer, "bos") if config.bos else None,
        eos=_special(tokenizer, "eos") if config.eos else None,
        too_long=config.too_long,
        max_tokens=min(config.max_tokens or limit, limit) if config.too_long == "cut" else None,
        content=tokenizer.to_json(),
    )


def spec_text(spec: Spec) -> str:
    """Canonical JSON of a spec, as a view has it."""
    return canonical_json(_values(spec)).decode()


def size_text(spec: Spec) -> str:
    """Canonical JSON of the part of a spec that its size column depends on."""
    return canonical_json({name: value for name, value in _values(spec).items() if name not in SIZELESS}).decode()


def open_spec(backend: Backend, text: str) -> Spec:
    """The spec of a view's JSON. Raises FormatError for another version, and ConfigError for a class of the user's own
    whose module this process has not imported: a store must not make it import one.
    """
    values = json.loads(text)
    kind, version = values.pop("kind"), values.pop("version")
    spec: Spec
    if kind == RowSamples.kind:
        spec = RowSamples()
    elif kind == RenderedSamples.kind:
        spec = RenderedSamples(**values)
    elif kind == TextSamples.kind:
        spec = TextSamples(**values, content=stored_tokenizer(backend, values["tokenizer"]))
    else:
        if kind.partition(":")[0] not in sys.modules:
            raise ConfigError(
                "the run's samples are made by a class that no config here names",
                found=kind,
                remedy="Give the run's config too (`--config RUN.yaml`), or import the class before.",
            )
        tree = parse(json.dumps(values), f"the spec {kind}", lines=False)
        assert isinstance(tree, YamlTable)
        spec = _own(load_section(own_class(kind), tree))
    if spec.version != version:
        raise FormatError(
            f"the samples of spec {kind} were defined by another version of it",
            found=f"version {version}, installed is {spec.version}",
            remedy="Install the version that the run began with, or begin a new run.",
        )
    return spec


def import_spec(text: str) -> None:
    """Import the class of a spec that the user named, in another process of theirs."""
    kind = json.loads(text)["kind"]
    if ":" in kind:
        own_class(kind)


def _values(spec: Spec) -> dict[str, Any]:
    return {**as_tree(spec), "kind": kind_of(spec), "version": spec.version}


def _own(spec: Any) -> Spec:
    lacking = [name for name in MEMBERS if not hasattr(spec, name)]
    if lacking:
        raise ConfigError(
            f"the class {kind_of(spec)} is not a spec: it lacks {', '.join(lacking)}",
            found=[field.name for field in fields(spec)],
            remedy='docs/api.md, "Specs", lists the members of a spec.',
        )
    made: Spec = spec
    return made


def _cut_to(limit: int, spec: Any) -> Spec:
    """The spec; if it cuts, then with `max_tokens` up to a forward's length, by which its forwards are dealt."""
    if spec.too_long == "cut":
        if "max_tokens" not in {field.name for field in fields(spec)}:
            raise ConfigError(
                f"the spec {kind_of(spec)} cuts samples, and cannot be told where",
                found=[field.name for field in fields(spec)],
                remedy="Give the class a field `max_tokens: int | None = None`.",
            )
        spec = replace(spec, max_tokens=min(spec.max_tokens or limit, limit))
    made: Spec = spec
    return made


def text_tokenizer(config: TextSpec, backend: Backend, tokenizers: Sequence[str]) -> Tokenizer:
    """The tokenizer of a text, which the store then has too; `tokenizers` as in `make_spec`."""
    if config.tokenizer is None:
        if len(set(tokenizers)) != 1:
            raise ConfigError(
                "the spec of a text needs a tokenizer",
                found="no token dataset in the run has one" if not tokenizers else f"{len(set(tokenizers))} differ",
                remedy="Give spec.tokenizer: bytes, a path of a tokenizer.json, or the name of a dataset with tokens.",
            )
        return from_json(stored_tokenizer(backend, tokenizers[0]))
    if config.tokenizer == "bytes" or "/" in config.tokenizer or config.tokenizer.endswith(".json"):
        tokenizer = load_tokenizer(config.tokenizer)
        store_tokenizer(backend, tokenizer.to_json())
        return tokenizer
    commits = open_dataset(backend, config.tokenizer).commits()
    digest = commits[-1].tokenizer if commits else None
    if digest is None:
        raise ConfigError(
            f"dataset {config.tokenizer} has no tokenizer",
            found=config.tokenizer,
            remedy="Name a dataset that `fmscale ingest` made of text.",
        )
    return from_json(stored_tokenizer(backend, digest))


def _special(tokenizer: Tokenizer, name: str) -> int:
    number: int | None = getattr(tokenizer, f"{name}_id")
    if number is None:
        raise ConfigError(
            f"the tokenizer has no {name.upper()} token",
            found=tokenizer.digest,
            remedy=f"Give spec.{name}: false.",
        )
    return number
