"""A tuning problem whose only configuration never returns; imported by name in the tuner's worker."""

from fmscale.kernels.bench.problems import Problem

from tests.kernels.tuning_problems import problems as others


def problems() -> list[Problem]:
    """The op of `tuning_problems` with the configuration that hangs."""
    usual = others()[0]
    return [Problem(op=usual.op, bucket=usual.bucket, kernels={"forward": ({"kind": 4},)}, make=usual.make)]
