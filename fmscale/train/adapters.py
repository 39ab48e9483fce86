"""The frozen weights of an adapter run, which its base has."""

from typing import Any

from fmscale.checkpoint.base import name_base, pin_for
from fmscale.checkpoint.checkpoint import Checkpoint
from fmscale.checkpoint.read.restore import restore
from fmscale.train.engine.protocol import Engine
from fmscale.train.session import Session


def load_base(session: Session, base: Checkpoint, engine: Engine) -> dict[str, str]:
    """Pin the base and fill the engine's frozen weights from it, each rank its own ranges; return the base's entry of
    `meta`. All ranks call it, and then `engine.restored`.

    Raises CorruptData for a damaged base, ConfigError for a base of another model, StoreError.
    """
    backend, run = session.backend, session.config.train.run
    if session.world.rank == 0:
        pin_for(run, backend, base)
    # The base run may commit another checkpoint between the looks of two ranks.
    which = f"entry{session.from_rank_0('entry of the base', base.found.entry, session.stop)}"
    options: dict[str, Any] = {"which": which, "waits": session.waits, "stop": session.stop, "tiers": session.tiers}
    restore(base.backend, base.run, engine.base_pieces(), weights=True, convert=True, **options)
    return name_base(base, backend)
