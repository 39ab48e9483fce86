"""A run from its config: the ranks meet, the parts are built and restored, the loop runs, the outcome is written."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from torch import nn

from fmscale.config import BatchShape, Config, derive_batch
from fmscale.config.metrics import ConsoleConfig
from fmscale.errors import StoreError
from fmscale.runtime.failure import Whereabouts, recorded
from fmscale.runtime.sinks.console import optional
from fmscale.runtime.sinks.run_sinks import check_sinks
from fmscale.runtime.stop import Stop
from fmscale.runtime.world import World, read_world
from fmscale.store.tiers.tier import Tier
from fmscale.train.data import check_length, empty_batch, memory_at_its_place
from fmscale.train.engine.deepspeed_config import check_hpz, sizes_of
from fmscale.train.engine.memory import device_memory
from fmscale.train.garbage import collected_together
from fmscale.train.init import with_model
from fmscale.train.length import RunLength, run_length
from fmscale.train.loop import dry_forwards, dry_run, run_loop
from fmscale.train.preflight.stages import RunSize, all_stages
from fmscale.train.reference import with_reference
from fmscale.train.run_folder import run_folder
from fmscale.train.session import Session, meet
from fmscale.train.setup import Show, assemble
from fmscale.train.spikes import check_spike

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a run, as every rank sees it."""

    run: str
    first_step: int
    """Steps of the run before this job."""
    last_step: int
    """Steps of the run at the end of this job."""
    stop: Stop
    """Reason for a stop before the run's end; NO for a complete run."""
    saved_step: int
    """Steps of the newest checkpoint that is durable on the store; 0 without a checkpoint."""
    folder: Path
    """Folder of metrics and records."""
    world: World

    def to_json(self) -> dict[str, Any]:
        """Content of outcome.json. A requeue script reads `complete`: True once the end of the run is saved."""
        saved = self.saved_step == self.last_step
        return {
            "run": self.run,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "complete": not self.stop and saved,
            "stop": self.stop.name if self.stop else None,
            "saved": saved,
            "saved_step": self.saved_step,
            "world_size": self.world.world_size,
        }


def run_training(
    config: Config, *, show: Show, event: Show, phase: Callable[[str], None] | None = None, tiers: Sequence[Tier] = ()
) -> Outcome:
    """Train as the config says, from the newest checkpoint of the run, if any.

    `show` gets the record of the first step and of every log_every-th step, `event` all other records, `phase` the name
    of each phase, such as "meeting" or "train"; all on rank 0 only, and only with `console` in `metrics.sinks`. `tiers`
    are asked for chunks before the store.
    Raises FmscaleError with the remedy, also where the run's last save did not become durable; the first rank to
    fail writes error.json into the run's folder.
    """
    if not any(isinstance(sink, ConsoleConfig) for sink in config.metrics.sinks):
        show, event, phase = lambda record: None, lambda record: None, None
    world = read_world()
    if world.notice:
        logger.warning(world.notice)
    where, folder = Whereabouts(watch=None if world.rank else phase), run_folder(config)
    where.spent["imports"] = _age()
    with recorded(folder, world, where), ExitStack() as stack:
        session = replace(meet(config, world, where, stack), tiers=tiers)
        # Inside the stack: a failure is recorded and sent to the other ranks before the stack closes anything.
        with recorded(folder, world, where, session.waits):
            where.phase = "checking the config"
            config = with_reference(with_model(config, session.backend), session.backend)
            session = replace(session, config=config)
            batch = derive_batch(config.batch, session.dp.size, place=config.place("batch"))
            length = run_length(config, batch)
            check_length(config)
            check_hpz(config, world.world_size, world)
            check_spike(config)
            if world.rank == 0:
                check_sinks(config)
            return _run(session, batch, length, stack, optional(show), optional(event))


def _run(session: Session, batch: BatchShape, length: RunLength, stack: ExitStack, show: Show, event: Show) -> Outcome:
    config, world, where = session.config, session.world, session.where
    loop, restored = assemble(session, batch, length, stack, show, event)
    saving = loop.saving
    with device_memory(config, batch, session.device, _state_bytes(config, loop.engine.module, batch, session.device)):
        if forwards := dry_forwards(config.train.compile, batch, session.device):
            dry_run(loop, empty_batch(config, loop.loader, batch), forwards)
        where.phase = "restore"
        length = restored()
        saving.prepare()
        with memory_at_its_place(config), collected_together() as collect:
            step, reason = run_loop(loop, length, collect)
    loop.journal.end(step, "stopped" if reason else "complete")
    where.phase = "waiting for the last save"
    saving.close(config.checkpoint.seal_seconds)
    session.watchdog.leave()
    saved = session.from_rank_0("end of the run", saving.acknowledged)
    session.waits.part()
    outcome = Outcome(
        run=config.train.run,
        first_step=length.first_step,
        last_step=step,
        stop=reason,
        saved_step=saved,
        folder=session.folder,
        world=world,
    )
    if world.rank == 0:
        _write_outcome(outcome)
    if saved != step:
        raise StoreError(
            f"the state after step {step} of run {config.train.run} is not saved; "
            + (f"the newest checkpoint is that of step {saved}" if saved else "there is no checkpoint"),
            found=saving.trouble,
            remedy="See to the store, which `fmscale doctor` checks, then run the same command again: it goes on "
            "from the newest checkpoint.",
        )
    return outcome


def _age() -> float:
    """Seconds since this process began. Both of psutil's times have the boot time in whole seconds, which cancels."""
    began: float = psutil.Process().create_time() - psutil.boot_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def _state_bytes(config: Config, module: nn.Module, batch: BatchShape, device: str) -> int:
    """Bytes of the model's state on this rank's device, by the plan."""
    counts = {True: 0, False: 0}
    for parameter in module.parameters():
        counts[parameter.requires_grad] += getattr(parameter, "ds_numel", parameter.numel())
    sizes = {"trained": counts[True], "frozen": counts[False], "world": batch.dp_size}
    size = RunSize(**sizes, accumulation=batch.accumulation, model=sizes_of(module))
    return all_stages(config, size, batch, on_gpu=device.startswith("cuda"))[config.train.zero_stage].device


def _write_outcome(outcome: Outcome) -> None:
    """Write outcome.json, or remove it if the disk is full: an earlier job's outcome must not pass for this job's."""
    path = outcome.folder / "outcome.json"
    beside = path.with_name(".outcome.json")
    try:
        beside.write_text(json.dumps(outcome.to_json(), indent=2) + "\n")
        beside.replace(path)
    except OSError as error:
        logger.warning("%s is not written: %s", path, error.strerror)
        with suppress(OSError):
            beside.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
