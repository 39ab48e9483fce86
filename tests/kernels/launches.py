"""Launches of kernels under the interpreter: recorded without a run, or run at a few programs.

The functions import the interpreter and numpy, so this file imports without them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Noted:
    """One launch."""

    kernel: str
    """The kernel's name."""
    arguments: dict[str, Any]
    """Value of every parameter, and of the launch's options."""
    key: tuple[object, ...]
    """Key of the compiled kernel: another key is another compilation."""


def _specialized(value: object, *, constant: bool, fixed: bool) -> object:
    """Key of an argument as in Triton: an integer's width and, unless `fixed`, if it is 1 or a multiple of 16."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.data_ptr() % 16 == 0
    if constant or value is None or not isinstance(value, int):
        return value if constant else type(value)
    return abs(value) >= 2**31, not fixed and (value == 1, value % 16 == 0)


def note_launches(patch: pytest.MonkeyPatch) -> list[Noted]:
    """Run no kernel from here on; append the launches to the returned list."""
    from triton.runtime.interpreter import GridExecutor, InterpretedFunction

    found: list[Noted] = []

    def run(self: Any, *args: Any, grid: object, warmup: bool, **options: Any) -> None:
        constants = GridExecutor(self.fn, self.arg_names, grid).constexprs
        fixed = self.kwargs["do_not_specialize"] or ()
        arguments = dict(zip(self.arg_names, args, strict=False)) | options
        key = tuple(
            (name, _specialized(value, constant=name in constants or name in options, fixed=name in fixed))
            for name, value in arguments.items()
        )
        found.append(Noted(kernel=self.__name__, arguments=arguments, key=key))

    patch.setattr(InterpretedFunction, "run", run)
    return found


def run_only(patch: pytest.MonkeyPatch, programs: dict[str, Sequence[int]]) -> None:
    """Run these programs of each kernel, counted from the end if negative, and no other kernel.

    An access outside of the launch's tensors raises here instead of a crash of the process.
    """
    import numpy as np
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    spans: list[tuple[int, int]] = []

    def check(pointers: Any, mask: Any) -> None:
        touched = np.broadcast_to(pointers.data, mask.data.shape)[mask.data].astype(np.uint64)
        inside = np.zeros(touched.shape, dtype=bool)
        for first, end in spans:
            inside |= (touched >= first) & (touched < end)
        assert inside.all(), f"{(~inside).sum()} of {inside.size} addresses lie outside of every tensor"

    load, store = builder.create_masked_load, builder.create_masked_store

    def checked_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return load(pointers, mask, *rest)

    def checked_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return store(pointers, value, mask, *rest)

    def run(self: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        storages = [x.untyped_storage() for x in args if isinstance(x, Tensor)]
        spans[:] = [(one.data_ptr(), one.data_ptr() + one.nbytes()) for one in storages]
        executor = interpreter.GridExecutor(self.fn, self.arg_names, (1,), self.pre_run_hooks)
        for program in programs.get(self.__name__, ()):
            number = program % grid[0]
            with pytest.MonkeyPatch.context() as here:
                here.setattr(builder, "set_grid_idx", lambda x, y, z, n=number: setattr(builder, "grid_idx", (n, y, z)))
                executor(*args, **options)

    patch.setattr(builder, "create_masked_load", checked_load)
    patch.setattr(builder, "create_masked_store", checked_store)
    patch.setattr(interpreter.InterpretedFunction, "run", run)
