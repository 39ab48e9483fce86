"""The device of this rank."""

import socket
from collections.abc import Sequence

from fmscale.errors import ConfigError
from fmscale.runtime.waits import name_ranks
from fmscale.runtime.world import World


def pick_device(world: World, wanted: str = "auto") -> str:
    """ "cuda:N" or "cpu" for this rank.

    `wanted`: "auto" takes a GPU if the node has GPUs, "cuda" requires a GPU, "cpu" uses no GPU. A rank that
    sees exactly one GPU takes it (Slurm shows each task its own); otherwise rank i of a node takes GPU i.
    Raises ConfigError if there are fewer GPUs than ranks, or for any other `wanted`.
    """
    if wanted not in ("auto", "cuda", "cpu"):
        raise ConfigError(
            "The device must be auto, cuda or cpu", found=wanted, remedy="auto takes a GPU where there is one."
        )
    if wanted == "cpu":
        return "cpu"
    from torch import cuda

    count = cuda.device_count() if cuda.is_available() else 0
    if not count:
        if wanted == "auto":
            return "cpu"
        remedy = "Take device auto or cpu, or install a CUDA build of torch and a driver for it."
        raise ConfigError("There is no CUDA device that torch can use", found=wanted, remedy=remedy)
    if count == 1:
        return "cuda:0"
    if world.local_rank >= count:
        found, remedy = f"local rank {world.local_rank}", f"Start at most {count} ranks a node, or take device cpu."
        raise ConfigError(f"{world.local_size} ranks on a node with {count} GPUs", found=found, remedy=remedy)
    return f"cuda:{world.local_rank}"


def device_place(device: str) -> tuple[str, str]:
    """Host of this rank, and the UUID of its GPU; "" for a CPU."""
    if device == "cpu":
        return socket.gethostname(), ""
    from torch import cuda

    return socket.gethostname(), str(cuda.get_device_properties(device).uuid)


def check_places(places: Sequence[tuple[str, str]]) -> None:
    """Raise ConfigError if ranks share a GPU, or if only some have a GPU: NCCL tells neither before its first use.

    `places` are those of `device_place`, by rank.
    """
    without = [rank for rank, (_, gpu) in enumerate(places) if not gpu]
    if without and len(without) < len(places):
        raise ConfigError(
            f"{name_ranks(without)} would compute on the CPU, and the other ranks on GPUs",
            found=f"no GPU on {places[without[0]][0]}",
            remedy="Set train.device to cuda, and see why torch finds no GPU there; or set it to cpu for all.",
        )
    for place in dict.fromkeys(places):
        ranks = [rank for rank, other in enumerate(places) if other == place]
        if place[1] and len(ranks) > 1:
            raise ConfigError(
                f"{name_ranks(ranks)} have the same GPU, and NCCL takes one rank a GPU",
                found=f"GPU {place[1]} on {place[0]}",
                remedy="Start as many ranks on a node as it has GPUs, and give each rank a GPU of its own: unset a "
                "CUDA_VISIBLE_DEVICES that names one GPU for all ranks.",
            )
