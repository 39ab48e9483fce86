"""Ranks that were given different configs are refused before anything is built, with keys and both values."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.distributed import HashStore  # type: ignore[attr-defined]

from fmscale.config import Config, load_config
from fmscale.errors import ConfigError
from fmscale.runtime.failure import first_failure
from fmscale.runtime.waits import HostWaits
from fmscale.runtime.world import World
from fmscale.train.same_config import config_digest, refuse_other_configs
from tests.helpers.ranks import run_ranks
from tests.train.runs import make_corpus, train_here, write_config


def refusals(path: Path, *overrides: Sequence[str]) -> list[str]:
    """Errors of ranks with these overrides."""
    store, configs = HashStore(), [load_config(str(path), given) for given in overrides]
    digests = [config_digest(config) for config in configs]

    def refuse(rank: int, config: Config) -> str:
        waits = HostWaits(store, World(rank=rank, world_size=len(configs)))
        try:
            refuse_other_configs(config, digests, waits, 30.0)
        except ConfigError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(configs)) as pool:
        return list(pool.map(refuse, range(len(configs)), configs))


def test_every_rank_names_the_keys_and_both_values(tmp_path: Path) -> None:
    path = write_config(tmp_path, "store")
    first, *others = refusals(path, [], ["optimizer.lr=0.5", "store.url=s3://k:PASSWORD@b"], [], ["optimizer.lr=0.5"])
    assert others == [first] * 3
    assert "the ranks were given 3 different configs" in first
    lr = load_config(str(path)).optimizer.lr
    assert f"optimizer.lr: 0.5 for rank 1, {lr} for rank 0; " in first
    assert 'store.url: "s3://***@b" for rank 1, "store" for rank 0; ' in first
    assert f"optimizer.lr: 0.5 for rank 3, {lr} for rank 0; " in first


def test_folders_caches_and_threads_of_a_node_may_differ(tmp_path: Path) -> None:
    own = ["train.folder=/local", "train.threads=2", "data.cache_dir=/nvme", "launch.nodes=2", "store.deadline=5"]
    assert refusals(write_config(tmp_path, "store"), [], own) == ["", ""]


def told_otherwise(rank: int, size: int, path: str) -> str:
    try:
        train_here(rank, size, path, ("model.num_layers=3",) if rank else ())
    except ConfigError as error:
        return str(error)
    return ""


def test_a_run_ends_on_all_ranks_before_anything_is_built(tmp_path: Path) -> None:
    path = write_config(tmp_path, make_corpus(tmp_path))
    first, second = run_ranks(told_otherwise, 2, str(path), timeout=120)
    assert first == second
    assert "model.num_layers: 3 for rank 1, " in first
    report = first_failure(tmp_path / "run")
    assert report is not None
    assert (report["type"], report["phase"]) == ("ConfigError", "meeting")
