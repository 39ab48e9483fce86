"""The steps, and the processes of each."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu_hour.jobs import Job

SMALL = "benchmarks/gpu_hour/small.yaml"
LARGE = "configs/run/h200.yaml"
LARGE_BYTES = 45 * 10**9
"""Disk that step 6 takes: two checkpoints of 17.3 GB while the second is written, and the store."""
TINY = ("data.sequence_length=64", "batch.global_batch=4", "batch.micro_batch=2", "train.steps=4")
TINY_MODEL = ("model.num_layers=2", "model.dim=64", "model.num_heads=2", "model.max_seq_len=64")
TINY_LARGE = ("model.num_kv_heads=2", "model.hidden_dim=128", "model.vocab_size=8192")
AT_ONCE = max(2, min(8, (os.cpu_count() or 1) // 2))
"""Small runs side by side: they wait for the host, not for the GPU."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Part of an hour."""

    name: str
    """Number in the records and in --only."""
    what: str
    """Description."""
    least: float
    """Seconds below which it is not started."""
    most: float
    """Seconds that it may take."""
    jobs: tuple[Job, ...]
    """Its processes, the most important first."""
    at_once: int = 1
    """Number of parallel processes."""
    disk: int = 0
    """Bytes of free disk that it needs."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Place where the steps run."""

    python: str
    """Interpreter of the jobs."""
    scratch: Path
    """Folder for the store, runs and caches."""
    dry: bool
    """True for tiny steps on the CPU."""

    @property
    def store(self) -> str:
        """The corpus."""
        return str(self.scratch / "store")

    def job(self, name: str, module: str, *words: str, seconds: float, device: str = "", at_once: int = 1) -> Job:
        """A process of this checkout; `device` is for DeepSpeed, which otherwise chooses a device itself."""
        environment = {
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            # 8 runs with a worker for every core would spend the step on starting workers.
            "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // at_once)),
            "TORCH_EXTENSIONS_DIR": str(self.scratch / "extensions"),
            **({"DS_ACCELERATOR": device} if device else {}),
        }
        # The times are a GPU's; the CPU of a busy machine may take several times as long.
        seconds = math.inf if self.dry else seconds
        return Job(name=name, command=(self.python, "-m", module, *words), seconds=seconds, environment=environment)

    def run(self, name: str, config: str, *overrides: str, device: str, seconds: float, at_once: int = 1) -> Job:
        """A training run with its own name, folder and run in the store."""
        backend = ("--backend=aot_eager",) if self.dry else ()
        own = (f"train.run={name}", f"train.folder={self.scratch / 'runs'}", f"store.url={self.store}")
        words = (*backend, config, *own, f"train.device={device}", *overrides)
        module = "benchmarks.gpu_hour.train_job"
        return self.job(name, module, *words, seconds=seconds, device=device, at_once=at_once)


def steps(mode: str, setting: Setting) -> list[Step]:
    """Steps of `train` or `kernels`, in order: if time ends early, the first steps support the claims."""
    if mode == "kernels":
        made = [_prepare(setting, "--kernels-alone"), _kernels(setting)]
    else:
        made = [_prepare(setting), _devices(setting), _bf16(setting), _large(setting)]
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
    return Step(name="1", what=what, least=25, most=110, jobs=jobs, at_once=AT_ONCE)


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
    device = "cpu" if setting.dry else "cuda"
    jobs = tuple(
        setting.run(
            f"bf16-stage{stage}-{'compiled' if compiled else 'plain'}-recompute_{recompute}{again}",
            SMALL,
            "train.precision=bf16",
            f"train.zero_stage={stage}",
            f"train.compile={str(compiled).lower()}",
            f"train.recompute={recompute}",
            *_size(setting),
            device=device,
            seconds=90,
            at_once=AT_ONCE,
        )
        for stage, compiled, recompute, again in kinds
    )
    what = "bf16: ZeRO stages 0 to 3, compile, recompute, the same run twice"
    return Step(name="2", what=what, least=35, most=150, jobs=jobs, at_once=AT_ONCE)


def _large(setting: Setting) -> Step:
    """The run of T3: 60 steps of 65,536 tokens."""
    saves = ("checkpoint.keep_last=1", "checkpoint.grace_seconds=0", "train.log_every=5")
    tiny = (*TINY, *TINY_MODEL, *TINY_LARGE, "checkpoint.every=2", "data.memory_bytes=16777216")
    sizes = tiny if setting.dry else ("batch.global_batch=32", "train.steps=60", "checkpoint.every=20")
    device = "cpu" if setting.dry else "cuda"
    job = setting.run("h200", LARGE, *saves, *sizes, device=device, seconds=260)
    what = "1.3 B parameters, the store and checkpoints included"
    least, disk = (5, 0) if setting.dry else (100, LARGE_BYTES)
    return Step(name="6", what=what, least=least, most=260, jobs=(job,), disk=disk)


ATTENTION = "tests/kernels/attention/test_gpu.py"
SUITES = (
    ("attention", (ATTENTION, "-k", "not every_shipped_configuration")),
    ("others", ("tests/kernels", f"--ignore={ATTENTION}")),
    ("configurations", (ATTENTION, "-k", "every_shipped_configuration")),
    ("models", ("tests/models/test_gpu.py",)),
)
"""Every test marked `gpu`, in processes that compile side by side; attention's are three quarters of them."""
DRY_SUITES = (
    ("skipped", ("-m", "gpu", "tests/kernels")),
    ("interpreted", ("tests/kernels/test_swiglu.py::test_far_from_zero",)),
)
"""Without a GPU these are skipped with their reason, and one other test runs under Triton's interpreter."""


def _kernels(setting: Setting) -> Step:
    plugin = ("-p", "benchmarks.gpu_hour.pytest_records", "-p", "no:cacheprovider")
    suites = DRY_SUITES if setting.dry else [(name, ("-m", "gpu", *words)) for name, words in SUITES]
    at_once = min(4, AT_ONCE)
    jobs = tuple(setting.job(name, "pytest", *plugin, *words, seconds=520, at_once=at_once) for name, words in suites)
    what = "the kernels' and models' tests on a GPU"
    return Step(name="tests", what=what, least=30, most=530, jobs=jobs, at_once=at_once)


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
