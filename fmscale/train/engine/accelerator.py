"""DeepSpeed for the device of this rank.

DeepSpeed reads the kind of device from DS_ACCELERATOR once in a process, and the device's number from LOCAL_RANK again
and again during training. Here both get the device of `pick_device`; the launcher's local rank is in `World`.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, cast

import torch

from fmscale.errors import ConfigError
from fmscale.runtime import variables

OPEN_MPI = "OMPI_COMM_WORLD_LOCAL_RANK"


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for `device` ("cpu" or "cuda:N"), with few messages and without its extension for inference.
    Training does not use the extension, which compiles at start (28 s, and a crash without a C++ compiler).

    LOCAL_RANK stays set until `variables.take_back`. Raises ConfigError if DS_ACCELERATOR names another kind of
    device, or if this process has used DeepSpeed on another kind.
    """
    kind, _, number = device.partition(":")
    given = os.environ.get("DS_ACCELERATOR")
    if given and given != kind:
        raise ConfigError(
            f"DS_ACCELERATOR contradicts the device of the run, which is {device}",
            found=given,
            remedy="Unset DS_ACCELERATOR: train.device says where a run computes.",
        )
    names = ["LOCAL_RANK"]
    if OPEN_MPI in os.environ:
        # DeepSpeed requires equal values in both variables.
        names.append(OPEN_MPI)
    variables.lend(**dict.fromkeys(names, number or "0"))
    # torch 2.13 deprecates collectives that DeepSpeed 0.19 calls: a warning a rank, of no use to the user.
    warnings.filterwarnings("ignore", message=".*_tensor.* is deprecated", category=FutureWarning)
    # DeepSpeed reads it only during its import.
    os.environ["DS_ACCELERATOR"] = kind
    try:
        with without_compiler():
            import deepspeed
            import deepspeed.ops
    finally:
        if given is None:
            del os.environ["DS_ACCELERATOR"]
    used = deepspeed.accelerator.get_accelerator().device_name()
    if used != kind:
        raise ConfigError(
            f"DeepSpeed computes on one kind of device in a process, and this run is to compute on {device}",
            found=used,
            remedy="Start this run in a process of its own.",
        )
    _import_muon()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed would find out here which extensions this machine can build, with a C program that it compiles and links
    # (0.15 CPU seconds a rank), to ask for a single extension, which compiles too.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


@contextmanager
def without_triton() -> Iterator[None]:
    """Imports inside find no Triton where there is no GPU and none of its kernels can run: DeepSpeed imports it if it
    can, which takes 76 MB and 0.4 CPU seconds.
    """
    hidden = "triton" not in sys.modules and not torch.cuda.is_available()
    if hidden:
        cast(Any, sys.modules)["triton"] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules["triton"]


@contextmanager
def without_compiler() -> Iterator[None]:
    """Functions that DeepSpeed excludes from compilation inside ask for torch's compiler only if it is loaded: nothing
    is compiled before. At ZeRO 3 they would load it at the first forward, for 2 CPU seconds and 75 MB.
    """
    untyped = cast(Any, torch)
    chosen = untyped.compiler.disable, untyped._disable_dynamo

    def excluded(function: Callable[..., Any], recursive: bool = True) -> Callable[..., Any]:
        apart: Callable[..., Any] = chosen[1](function, recursive)
        if not function.__module__.startswith("deepspeed"):
            return apart

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            return (apart if "torch._dynamo" in sys.modules else function)(*args, **options)

        return call

    untyped.compiler.disable = untyped._disable_dynamo = excluded
    try:
        yield
    finally:
        untyped.compiler.disable, untyped._disable_dynamo = chosen


def _import_muon() -> None:
    """Import DeepSpeed's Muon, which every reduction of gradients looks up and no run here uses, without compiled code:
    it would import torch's compiler, for 2 CPU seconds and 75 MB.
    """
    from deepspeed.runtime import compiler

    chosen, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = chosen
