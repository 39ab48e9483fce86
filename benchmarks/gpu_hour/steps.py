"""The steps of `train`, and the processes of each."""

import math
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.gpu_hour.kernel_steps import kernel_steps
from benchmarks.gpu_hour.setting import AT_ONCE, Setting, Step

SMALL = "benchmarks/gpu_hour/small.yaml"
LARGE = "configs/run/h200.yaml"
LARGE_BYTES = 45 * 10**9
"""Disk that step 6 takes: two checkpoints of 17.3 GB while the second is written, and the store."""
M124 = (
    "model.num_layers=12", "model.dim=768", "model.num_heads=12", "model.num_kv_heads=12", "model.hidden_dim=2048",
    "model.tied=true", "batch.micro_batch=32", "batch.global_batch=64", "train.steps=50", "train.log_every=5",
    "checkpoint.every=null",
)  # fmt: skip
"""GPT-2's size in the large run's file: 40 counted steps of 131,072 tokens behind 10 others."""
SECONDS = {"train": 300.0, "kernels": 240.0}
"""Time of each mode: both are 540 s."""
DRY_SECONDS = 3600.0
"""Time of a mode without a GPU, whose machine may be busy."""
TINY = ("data.sequence_length=64", "batch.global_batch=4", "batch.micro_batch=2", "train.steps=4")
TINY_MODEL = ("model.num_layers=2", "model.dim=64", "model.num_heads=2", "model.max_seq_len=64")
TINY_LARGE = ("model.num_kv_heads=2", "model.hidden_dim=128", "model.vocab_size=8192")


def steps(mode: str, setting: Setting) -> list[Step]:
    """Steps of `train` or `kernels`, in order: if time ends early, the first steps support the claims."""
    if mode == "kernels":
        made = [_prepare(setting, "--kernels-alone"), *kernel_steps(setting)]
    else:
        made = [_prepare(setting), _devices(setting), _bf16(setting), _large(setting)]
        made += [_speed(setting), _killed(setting), _memory(setting), _recompute(setting)]
    return [replace(step, most=math.inf) for step in made] if setting.dry else made


def _prepare(setting: Setting, *words: str) -> Step:
    words = (f"--store={setting.store}", *(("--files=24",) if setting.dry else ()), *words)
    job = setting.job("prepare", "benchmarks.gpu_hour.prepare_job", *words, seconds=60)
    return Step(name="0", what="versions, imports, the corpus", least=5, most=60, jobs=(job,))


def _devices(setting: Setting) -> Step:
    """fp32 on CPU and GPU."""
    if setting.dry:
        kinds = [("cpu", 0, "eager"), ("cpu", 2, "eager")]
    else:
        kinds = [("cpu", 2, "eager"), ("cuda", 2, "triton"), ("cuda", 2, "eager")]
        kinds += [("cpu", 0, "eager"), ("cuda", 0, "triton"), ("cuda", 0, "eager")]
    jobs = tuple(
        setting.run(
            f"fp32-{device}-stage{stage}-{attention}",
            SMALL,
            "train.precision=fp32",
            "train.compile=false",
            f"train.zero_stage={stage}",
            f"model.attention_backend={attention}",
            *_size(setting),
            device=device,
            seconds=90,
            at_once=AT_ONCE,
        )
        for device, stage, attention in kinds
    )
    what = "fp32: CPU and GPU, ZeRO stages 0 and 2, attention by Triton and eager"
    return Step(name="1", what=what, least=20, most=60, jobs=jobs, at_once=AT_ONCE)


def _bf16(setting: Setting) -> Step:
    """Stages, compile and recompute, with one run repeated; ZeRO-3 runs blocks uncompiled."""
    if setting.dry:
        kinds = [(2, False, "none", ""), (2, True, "full", ""), (2, False, "none", "-again")]
    else:
        kinds = [
            (2, False, "none", ""),
            (2, True, "none", ""),
            (2, True, "full", ""),
            (2, True, "none", "-again"),
        ]
        kinds += [(stage, on, "none", "") for stage in (1, 0, 3) for on in (True, False) if stage < 3 or not on]
        kinds += [(stage, True, "full", "") for stage in (1, 0)]
        kinds += [(stage, False, "full", "") for stage in (2, 3, 1, 0)]
    jobs = tuple(
        setting.run(
            f"bf16-stage{stage}-{'compiled' if compiled else 'plain'}-recompute_{recompute}{again}",
            SMALL,
            "train.precision=bf16",
            f"train.zero_stage={stage}",
            f"train.compile={str(compiled).lower()}",
            f"train.recompute={recompute}",
            *_size(setting),
            device=setting.device,
            seconds=90,
            at_once=AT_ONCE,
        )
        for stage, compiled, recompute, again in kinds
    )
    what = "bf16: ZeRO stages 0 to 3, compile, recompute, the same run twice"
    return Step(name="2", what=what, least=25, most=75, jobs=jobs, at_once=AT_ONCE)


def _large(setting: Setting) -> Step:
    """The run of T3: 60 steps of 65,536 tokens."""
    saves = ("checkpoint.keep_last=1", "checkpoint.grace_seconds=0", "train.log_every=5")
    tiny = (*TINY, *TINY_MODEL, *TINY_LARGE, "checkpoint.every=2", "data.memory_bytes=16777216")
    sizes = tiny if setting.dry else ("batch.global_batch=32", "train.steps=60", "checkpoint.every=20")
    job = setting.run("h200", LARGE, *saves, *sizes, device=setting.device, seconds=200)
    what = "1.3 B parameters, the store and checkpoints included"
    least, disk = (5, 0) if setting.dry else (95, LARGE_BYTES)
    return Step(name="6", what=what, least=least, most=200, jobs=(job,), disk=disk)


def _speed(setting: Setting) -> Step:
    """A step of 0.3 s, in which pauses of the device count."""
    size = (*TINY, *TINY_MODEL, *TINY_LARGE, "train.steps=6", "train.log_every=3") if setting.dry else M124
    options = ("--profile=2", "--leave-after=6") if setting.dry else ("--profile=41", "--leave-after=50")
    jobs = tuple(
        setting.run(
            f"124m-{'compiled' if compiled else 'eager'}", LARGE, *size, f"train.compile={str(compiled).lower()}",
            device=setting.device, seconds=75, options=options,
        )
        for compiled in ((False,) if setting.dry else (True, False))
    )  # fmt: skip
    what = "124 M parameters, compiled and eager: tokens/s, waits for the device, its pauses"
    return Step(name="5", what=what, least=5 if setting.dry else 40, most=120, jobs=jobs)


def _killed(setting: Setting) -> Step:
    """The same run whole, and killed behind step 12, two steps behind a checkpoint."""
    every, after, size = (2, 3, _size(setting)) if setting.dry else (10, 12, ())
    settings = ("train.precision=bf16", "train.zero_stage=2", f"checkpoint.every={every}", *size)
    jobs = tuple(
        setting.run(name, SMALL, *settings, device=setting.device, seconds=60, at_once=2, killed_after=step)
        for name, step in (("killed", after), ("whole", 0))
    )
    return Step(name="3", what="kill -9 between two steps, and the same run again", least=15, most=60, jobs=jobs,
                at_once=2)  # fmt: skip


def _memory(setting: Setting) -> Step:
    words = (f"--device={setting.device}", f"--mib={16 if setting.dry else 4096}")
    job = setting.job("pages", "benchmarks.gpu_hour.memory_job", *words, seconds=40)
    return Step(name="4", what="a snapshot's memory: registration and copies", least=12, most=40, jobs=(job,))


def _recompute(setting: Setting) -> Step:
    """The large run with `recompute: full` and compile, at twice the rows of a forward."""
    tiny = (*TINY, *TINY_MODEL, *TINY_LARGE)
    sizes = tiny if setting.dry else ("batch.global_batch=32", "train.steps=30", "batch.micro_batch=16")
    leave = 4 if setting.dry else 15
    settings = ("train.recompute=full", "train.compile=true", "checkpoint.every=null", "train.log_every=1")
    options = (f"--leave-after={leave}",)
    job = setting.run("h200-recompute", LARGE, *settings, *sizes, device=setting.device, seconds=90, options=options)
    return Step(name="8", what="1.3 B with recompute and compile", least=5 if setting.dry else 40, most=90, jobs=(job,))


def chosen(all_steps: Sequence[Step], only: str) -> list[Step]:
    """Steps that `only` names, with step 0, their base. Raises ValueError with all names."""
    wanted = {word.strip() for word in only.split(",") if word.strip()}
    strangers = wanted - {step.name for step in all_steps}
    if strangers:
        there = ", ".join(step.name for step in all_steps)
        raise ValueError(f"no such step: found {', '.join(sorted(strangers))}. The steps are {there}.")
    return [step for step in all_steps if not wanted or step.name in wanted or step.name == "0"]


def _size(setting: Setting) -> tuple[str, ...]:
    return (*TINY, *TINY_MODEL) if setting.dry else ()
