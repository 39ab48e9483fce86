"""A run opens its loader with all fields of the data section: a field that is not passed on fails here."""

from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_type_hints

import pytest

from fmscale.config import BatchShape, Config, DataConfig, SourceConfig, TrainConfig
from fmscale.config.spec import TextSpec
from fmscale.runtime.axes import Axis
from fmscale.runtime.world import World
from fmscale.store.backends.protocol import Backend
from fmscale.train import data
from tests.helpers.copy_tier import CopyTier

SOURCES = (
    SourceConfig(
        dataset="a", weight=2.5, split="train2", commits=(3, 5), masks=("m",), seed=11, spec=TextSpec(field="a")
    ),
    SourceConfig(
        dataset="b", weight=0.5, split="other", commits=(7,), masks=("n", "o"), seed=13, spec=TextSpec(field="b")
    ),
)
DATA = DataConfig(
    sources=SOURCES,
    sequence_length=33,
    seed=17,
    window=19,
    memory_bytes=2**21,
    cache_dir="/cache",
    cache_bytes=2**22,
    spec=TextSpec(field="c"),
    quarantine_share=0.25,
    on_corrupt="stop",
)
CONFIG = Config(data=DATA, train=TrainConfig(run="named", record_delivery=True))
RANK = World(rank=3, world_size=6, local_rank=1, local_size=2)
DP = Axis(rank=4, size=6)


def told(section: Any) -> dict[str, Any]:
    """The fields of a section that have more than one value to choose from."""
    hints = get_type_hints(type(section))
    names = [field.name for field in fields(section) if len(get_args(hints[field.name])) != 1]
    return {name: getattr(section, name) for name in names}


@pytest.mark.parametrize("section", [DATA, *SOURCES])
def test_no_field_here_is_left_at_its_default(section: Any) -> None:
    """A default value could reach the loader by chance."""
    plain = type(section)(**{f.name: told(section)[f.name] for f in fields(section) if required(f)})
    assert [name for name, value in told(plain).items() if told(section)[name] == value] == [
        field.name for field in fields(section) if required(field)
    ]


def required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@pytest.mark.parametrize("flat", [False, True])
def test_every_field_reaches_the_loader(monkeypatch: pytest.MonkeyPatch, memory_store: Backend, flat: bool) -> None:
    given: list[dict[str, Any]] = []
    tiers = (CopyTier(memory_store),)
    opener = "open_flat_loader" if flat else "open_loader"
    monkeypatch.setattr(data, opener, lambda store, **options: given.append({"store": store, **options}))
    batch = BatchShape(global_batch=24, micro_batch=2, accumulation=2, dp_size=6, forward_tokens=128 if flat else None)
    data.open_training(CONFIG, memory_store, RANK, DP, batch, lease=23, tiers=tiers)
    [found] = given
    kind = {"forward_tokens": 128, "sample_tokens": None} if flat else {"micro_batch": 2}
    assert found == {
        **{name: value for name, value in told(DATA).items() if flat or name != "spec"},
        **kind,
        "sources": SOURCES,
        "sequence_length": 33 + 1,
        "store": memory_store,
        "run": "named",
        "lease": 23,
        "batch": 24,
        "dp_rank": 4,
        "dp_size": 6,
        "nodes": 3,
        "tiers": tiers,
        "document_ids": True,
    }
