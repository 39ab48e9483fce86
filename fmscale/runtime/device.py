"""The device of this rank."""

from fmscale.errors import ConfigError
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
