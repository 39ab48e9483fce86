"""Kernel tests run the real kernels: on CUDA where there is a device, else under Triton's interpreter.

The interpreter is chosen by TRITON_INTERPRET when a kernel is decorated, so it must be set before
`fmscale.kernels` is imported, and such a process cannot compile: the compile gate has its own.

Under the interpreter a bfloat16 is its bit pattern, a uint16: products of them are garbage and casts truncate (Triton's
maintainers do not mean to change it). The two functions below correct this, so that the source behaves in bf16 as on a
GPU. Autotuning needs a GPU: take the first configuration.

A borrowed GPU machine may have torch, triton and pytest alone. Without hypothesis the tests of random shapes are
skipped; no other test here needs another package.
"""

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

if not torch.cuda.is_available():
    if "fmscale.kernels" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError(
            "fmscale.kernels was imported before tests/kernels/conftest.py could choose the interpreter; "
            "run with TRITON_INTERPRET=1 set, or tests/kernels on its own"
        )
    os.environ["TRITON_INTERPRET"] = "1"

# For processes of the tests: two threads spin while they wait for each other on a busy core. Beside other tests the
# tuner's tests took 5.8 s instead of 16.
os.environ.setdefault("OMP_NUM_THREADS", "1")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if importlib.util.find_spec("hypothesis") is None:

    def _skipped(*_: object, **__: object) -> Callable[..., Any]:
        return pytest.mark.skip(reason="needs hypothesis: pip install hypothesis")

    # with a spec, which torch.compile looks for
    hypothesis: Any = importlib.util.module_from_spec(ModuleSpec("hypothesis", None))
    hypothesis.given, hypothesis.settings, hypothesis.strategies = _skipped, _skipped, MagicMock()
    sys.modules["hypothesis"] = hypothesis

if INTERPRETED:
    import numpy as np
    import triton.language as tl
    from triton.runtime import autotuner, interpreter

    from tests.kernels.products import pairs

    def _widen(handle: interpreter.TensorHandle) -> Any:
        if handle.dtype.scalar == tl.bfloat16:
            return (handle.data.astype(np.uint32) << 16).view(np.float32)
        return handle.data

    def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        # As tensor cores do: products of 8 along the sum exactly, such steps one after the other in fp32. BLAS
        # rounds a product and its transpose differently, which gradients of scores of 60 show. Products of
        # 16 bits are exact in fp32, which is also many times faster in numpy than fp16.
        wide: Any = np.float32 if a.dtype.scalar.primitive_bitwidth == 16 else np.float64
        left, right = (_widen(one).astype(wide, copy=False) for one in (a, b))
        step = left.shape[1] if wide == np.float32 else 8
        single = a.dtype.scalar == tl.float32
        parts: Any = pairs(left, right, input_precision.name.lower()) if single else [(left, right)]
        total = d.data
        for k in range(0, left.shape[1], step):
            products = (x[:, k : k + step] @ y[k : k + step] for x, y in parts)
            total = sum(products, total).astype(d.data.dtype)
        return interpreter.TensorHandle(total, d.dtype.scalar)

    _cast = interpreter.InterpreterBuilder.cast_impl
    _round = interpreter.InterpreterBuilder.create_fp_to_fp

    def _to_bfloat16(data: np.ndarray) -> np.ndarray:
        bits = np.ascontiguousarray(data).view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
        return np.where(np.isnan(data), np.uint32(0x7FC0), rounded).astype(np.uint16)

    def _cast_impl(self: Any, source: Any, target: Any) -> Any:
        kinds = (source.dtype.scalar, target.scalar)
        if kinds[1] == tl.bfloat16 and kinds[0] in (tl.float32, tl.float16):
            return interpreter.TensorHandle(_to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
        if kinds[0] == tl.bfloat16 and kinds[1] in (tl.float32, tl.float64, tl.float16):
            wide = _widen(source).astype(interpreter._get_np_dtype(target))
            return interpreter.TensorHandle(wide, target.scalar)
        return _cast(self, source, target)

    def _fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if tl.bfloat16 in (source.dtype.scalar, target.scalar):
            return _cast_impl(self, source, target)
        return _round(self, source, target, rounding)

    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter.InterpreterBuilder.cast_impl = _cast_impl
    interpreter.InterpreterBuilder.create_fp_to_fp = _fp_to_fp

    # Every call of a device function patches triton.language again, 4 ms each: once a launch is enough.
    # Overflow checks of 32-bit index arithmetic double an addition's cost; `checked_overflow` has them.
    _patched: set[tuple[bool, bool]] = set()
    _launch = interpreter.GridExecutor.__call__

    def _launch_once_patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        _patched.clear()
        return _launch(self, *args, **kwargs)

    def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = self.fn.__globals__.values()
        key = (any(one is tl for one in names), any(one is tl.core for one in names))
        if key not in _patched:
            interpreter._patch_lang(self.fn)
            _patched.add(key)
        return self.rewrite()(*args, **kwargs)

    _np_dtypes: dict[str, np.dtype] = {}
    _np_dtype = interpreter._get_np_dtype

    def _known_np_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in _np_dtypes:
            _np_dtypes[name] = _np_dtype(dtype)
        return _np_dtypes[name]

    interpreter._get_np_dtype = _known_np_dtype  # it builds a table at every call
    interpreter.GridExecutor.__call__ = _launch_once_patched
    interpreter.InterpretedFunction.__call__ = _call
    _options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(_options, sanitize_overflow=False)

    _run = autotuner.Autotuner.run

    def _first(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.configs = self.configs[:1]
        return _run(self, *args, **kwargs)

    autotuner.Autotuner.run = _first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    if torch.cuda.is_available() and not INTERPRETED:
        return
    skip = pytest.mark.skip(reason="needs a CUDA device: kernels are compiled and run at real sizes")
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Device of the kernels: CUDA, or the CPU under the interpreter."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture
def checked_overflow() -> Iterator[None]:
    """The interpreter fails where 32-bit integer arithmetic overflows."""
    if not INTERPRETED:
        yield
        return
    builder = interpreter.interpreter_builder
    before = builder.options
    builder.options = dataclasses.replace(before, sanitize_overflow=True)
    yield
    builder.options = before
