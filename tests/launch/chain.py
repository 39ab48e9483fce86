"""`fmscale train` at all ZeRO stages, one after another: a rank imports once for four runs.

    python -m tests.launch.chain train CONFIG train.run=NAME [train.zero_stage=FIRST] [KEY=VALUE ...]

Trains the runs NAME-0 to NAME-3. NAME-i has stage (FIRST + i) mod 4, FIRST is 0 by default.
"""

import os
import sys
from collections.abc import Sequence

from fmscale.cli.train import train
from fmscale.runtime.group import connect
from fmscale.runtime.world import read_world

STAGES = 4


def main(verb: str, config: str, words: Sequence[str]) -> None:
    """The runs, as a rank of any launcher or alone."""
    assert verb == "train"
    given = dict(word.split("=", 1) for word in words if not word.startswith("--"))
    name, first = given.pop("train.run"), int(given.pop("train.zero_stage", 0))
    world = read_world()
    # Rank 0 serves one store at the launcher's place, as an agent of torchrun does, and each run has keys of its own:
    # a rank that is early would find the store of the run before.
    store = connect(world)
    if world.world_size > 1:
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    for number in range(STAGES):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number + 1)
        own = {"train.run": f"{name}-{number}", "train.zero_stage": (first + number) % STAGES}
        train(config, [f"{key}={value}" for key, value in (given | own).items()])
    assert "torch._dynamo" not in sys.modules, "a run without compiled code takes 2 CPU seconds to load the compiler"
    del store


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
