"""The steps of `kernels`: the tests on a GPU, choices between variants, and the rows of the benchmark at 8k tokens."""

from benchmarks.gpu_hour.setting import AT_ONCE, Setting, Step

VARIANTS = ("forward E=128", "flush", "forward E=64", "dkdv E=128")
"""Choices in the order of their weight; see `variants.py`."""
SHARDS = AT_ONCE
"""Processes that share out the tests: a test compiles its kernels for seconds on one core."""
LONG = "not thousand and not 31_bits and not quick"
"""Leaves out the tests of many repeats and of 4 GB tensors, a minute each, and that of the step `rows`."""
SUITES = ("tests/kernels", "tests/models/test_gpu.py")
DRY_SUITES = ("tests/kernels/test_swiglu.py",)
"""Tests under Triton's interpreter, and tests that are skipped without a GPU, with their reason."""
DRY_LONG = "far_from_zero or gpu"


def kernel_steps(setting: Setting) -> list[Step]:
    """Steps behind step 0."""
    return [_tests(setting), _variants(setting), _rows(setting)]


def _tests(setting: Setting) -> Step:
    """Every test marked `gpu` that is not long, dealt out over processes that compile side by side."""
    plugin = ("-p", "benchmarks.gpu_hour.pytest_records", "-p", "no:cacheprovider")
    words = ("-k", DRY_LONG, *DRY_SUITES) if setting.dry else ("-m", "gpu", "-k", LONG, *SUITES)
    shards = 2 if setting.dry else SHARDS
    jobs = tuple(
        setting.job(f"tests-{n}", "pytest", *plugin, f"--deal={n}/{shards}", *words, seconds=100, at_once=shards)
        for n in range(shards)
    )
    what = "the kernels' and models' tests on a GPU"
    return Step(name="tests", what=what, least=30, most=100, jobs=jobs, at_once=shards)


def _variants(setting: Setting) -> Step:
    words = ("--dry",) if setting.dry else ()
    jobs = tuple(
        setting.job(name, "benchmarks.gpu_hour.variants", name, *words, seconds=30, kernels=True)
        for name in (VARIANTS[1:3] if setting.dry else VARIANTS)
    )
    return Step(name="variants", what="one kernel's configurations beside each other", least=10, most=40, jobs=jobs)


def _rows(setting: Setting) -> Step:
    words = ("--dry", "--seconds=inf") if setting.dry else ("--seconds=90",)
    job = setting.job("rows", "benchmarks.gpu_hour.rows_job", *words, seconds=100, kernels=True)
    return Step(name="rows", what="the benchmark's attention rows at 8k tokens", least=30, most=100, jobs=(job,))
