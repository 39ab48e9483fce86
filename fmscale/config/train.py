"""The sections `train`, `optimizer`, `schedule` and `evaluation`."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fmscale.config.checks import InvalidField, above_zero, at_least, at_most, not_empty
from fmscale.config.kinds import Own
from fmscale.config.spec import RenderedSpec, TextSpec


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The run itself. Its length is given as `steps` or as `tokens`, not both."""

    run: str = "run"
    """Name of the run: its order, checkpoints and record are at runs/NAME in the store."""
    folder: str = "runs"
    """Local folder for metrics, delivery records and error.json: FOLDER/RUN."""
    steps: int | None = None
    """Optimizer steps of the whole run."""
    tokens: int | None = None
    """Tokens of the whole run, instead of `steps`; rounded up to whole steps. A resume with another batch takes the
    tokens that are left, and the schedule goes on by tokens."""
    seed: int = 0
    """Seed of the initial weights and of dropout; the order of data has its own seed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that computes; auto takes a GPU where there is one."""
    precision: Literal["bf16", "fp32"] | None = None
    """Type of weights and activations in forward and backward. Masters, moments, gradient accumulation and the
    loss are fp32 in both. null takes bf16 on a GPU and fp32 on a CPU, where bf16
    products take up to seven times as long (no AVX-512 BF16)."""
    reduce_precision: Literal["bf16", "fp32"] | None = None
    """Type in which gradients travel between ranks; null takes fp32."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """Stage of ZeRO: 1 partitions optimizer state, 2 also gradients, 3 also parameters; 0 partitions nothing. In bf16
    stage 1 reduces gradients once a step, stages 2 and 3 at each forward: stage 1 is the faster with many forwards a
    step and a slow network."""
    zero_hpz_partition_size: int = 1
    """Ranks of a node among which stage 3 keeps a second copy of the weights (hpZ): backward then gathers them within
    the node, for 2 / size bytes a parameter more on each rank in bf16. It divides the ranks of a node; 1 is off."""
    offload_optimizer: bool = False
    """Keep and update masters and moments in host memory (DeepSpeedCPUAdam, compiled at first use); stages 1 to 3."""
    recompute: Literal["none", "full"] = "none"
    """`full` keeps only each block's input and computes the block again in backward: a third more compute for
    a tenth of the activations."""
    compile: bool | None = None
    """torch.compile each block; null compiles on CUDA. ZeRO stage 3 runs blocks uncompiled."""
    log_every: int = 10
    """Steps between two lines on the console, which always shows the first step; every step is in metrics.jsonl."""
    nonfinite_limit: int = 10
    """Steps in a row with a non-finite loss or gradient, recorded and not applied, after which the run stops."""
    record_delivery: bool = False
    """Write down each document piece and token digest that each rank's model received (`fmscale dataset audit`);
    costs about 30 us a row."""
    resume: str = "auto"
    """auto: go on from the newest checkpoint that all ranks find valid, else begin; never: begin, and refuse
    if the run has checkpoints; RUN@STEP or RUN: begin a new run (fork) from another run's checkpoint."""
    init: str | None = None
    """Source of the first weights, with a fresh order and fresh moments from step 0 on: RUN@STEP or RUN in the run's
    store, STORE#RUN@STEP or STORE#RUN in another, or a folder (with a / in its name) in Hugging Face's format. A run
    that has checkpoints goes on from these, and does not read it again."""
    seconds: float | None = None
    """Stop with a checkpoint after this many seconds; a scheduler's signal does the same."""
    comm_seconds: float = 600.0
    """Seconds after which a collective counts as hung."""
    trace: str | None = None
    """Steps whose work is traced, as FIRST-LAST: each rank writes FOLDER/RUN/trace-rankNNNNN.json.gz, which
    ui.perfetto.dev shows. On a GPU the traced steps are slower, as each span waits for the device."""
    threads: int | None = 1
    """CPU threads of a rank; null leaves torch's default. On CPU two ranks with two threads each on two cores
    ran six times slower than with one thread each. Updates of offload_optimizer take the rank's share of cores."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "tokens", "log_every", "nonfinite_limit", "threads", "zero_hpz_partition_size")
        above_zero(self, "seconds", remedy="Give a number above 0, or null for no limit.")
        at_most(self, 1024, "threads")
        above_zero(self, "comm_seconds")
        if self.steps is not None and self.tokens is not None:
            given, remedy = (self.steps, self.tokens), "Give one of them."
            raise InvalidField("tokens", "and steps both say how long the run is", found=given, remedy=remedy)
        if self.trace is not None:
            self.traced()
        if not self.run or "/" in self.run or "@" in self.run or self.run.startswith("."):
            raise InvalidField(
                "run", "must be a plain name", found=self.run, remedy="Letters, digits, '-', '_' and '.'."
            )
        if self.init is not None:
            not_empty("init", self.init, "Name a run or a folder, or give null for weights made of the seed.")
        if self.init and self.resume not in ("auto", "never"):
            raise InvalidField(
                "init",
                "gives a run's first weights, and resume takes the whole state of another run",
                found=(self.init, self.resume),
                remedy="Give init to begin at step 0 with these weights, or resume to go on from that state (fork).",
            )
        if self.offload_optimizer and self.zero_stage == 0:
            found, remedy = "zero_stage 0", "Take zero_stage 1, 2 or 3."
            raise InvalidField("offload_optimizer", "needs a partitioned optimizer", found=found, remedy=remedy)
        if self.zero_hpz_partition_size > 1 and self.zero_stage != 3:
            found, remedy = f"zero_stage {self.zero_stage}", "Take zero_stage 3, or zero_hpz_partition_size 1."
            raise InvalidField("zero_hpz_partition_size", "needs partitioned parameters", found=found, remedy=remedy)

    def on(self, device: str) -> "TrainConfig":
        """This config with the precision that null means on a device, such as "cpu" or "cuda:0"."""
        return self if self.precision else replace(self, precision="fp32" if device == "cpu" else "bf16")

    def traced(self) -> range:
        """Numbers of the steps that `trace` names."""
        found = re.fullmatch(r"(\d{1,18})-(\d{1,18})", self.trace or "")
        first, last = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= first <= last:
            remedy = "Give the first and the last step, such as 11-15; the first step of a run is 1."
            raise InvalidField("trace", "is no range of steps", found=self.trace, remedy=remedy)
        return range(first, last + 1)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019), with decay for matrices and without decay for norms and biases."""

    kind: ClassVar[str] = "adamw"
    lr: float = 3e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments."""
    eps: float = 1e-8
    """Number added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled decay of tensors with two or more dimensions."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 does not clip."""

    def __post_init__(self) -> None:
        above_zero(self, "lr", "eps")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidField("betas", "must be two numbers in [0, 1)", found=self.betas, remedy="Mostly [0.9, 0.95].")
        at_least(self, 0, "weight_decay", "clip_norm")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps: warmup, then one of three shapes."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    """wsd: stable, linear decay at the end (Hu et al. 2024, MiniCPM); cosine (Loshchilov and Hutter 2017); constant."""
    warmup_steps: int = 100
    """Steps of linear warmup from 0; with train.tokens, steps of the run's first batch."""
    decay_fraction: float = 0.2
    """wsd: the last part of the steps, in which the rate decays."""
    final_fraction: float = 0.1
    """Rate at the end, as a part of the peak."""

    def __post_init__(self) -> None:
        at_least(self, 0, "warmup_steps")
        for name in ("decay_fraction", "final_fraction"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InvalidField(name, "must lie in [0, 1]", found=value, remedy="Give a part: 0.1 for a tenth.")


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Held-out rows of one dataset."""

    dataset: str
    """Name of a dataset in the store."""
    split: str = "heldout"
    """Its split."""
    rows: int = 64
    """Rows, or samples, that are evaluated, over all ranks; the same each time."""
    spec: TextSpec | RenderedSpec | Own | None = None
    """Way from records to samples; null takes `data.spec`."""
    name: str | None = None
    """Name in the metrics; null takes the dataset's name."""

    def __post_init__(self) -> None:
        at_least(self, 1, "rows")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Losses on held-out data while training."""

    every: int | None = None
    """Steps between evaluations; null evaluates at the end only."""
    sets: tuple[EvaluationSet, ...] = ()
    """Sets that are evaluated."""
    prompts: tuple[str, ...] = ()
    """Texts that the model continues at each evaluation, or answers if the run has a chat template; recorded as the
    event `generations`."""
    prompt_tokens: int = 64
    """Most new tokens of each."""
    best: str | None = None
    """Name of the set by whose loss the best checkpoint is chosen: an evaluation with a new lowest loss saves, and this
    checkpoint, RUN@best, is kept; null chooses none."""

    def __post_init__(self) -> None:
        at_least(self, 1, "every", "prompt_tokens")
        names = [chosen.name or chosen.dataset for chosen in self.sets]
        if self.best is not None and self.best not in names:
            raise InvalidField(
                "best",
                "is not the name of a set that is evaluated",
                found=self.best,
                remedy=f"Sets: {', '.join(names) or 'none'}.",
            )
