"""Running the kernels on a CPU, by Triton's own interpreter: slow, and for tests.

The interpreter asks for PyTorch's tensors, of which it uses little more than their address; arrays
of NumPy with that little stand in for them. It reads and writes memory as a kernel would, without
asking what is there, so arrays lie between bands of nan, and the bands behind them are looked at
afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import triton
import triton.language as tl
from jax.sharding import AxisType
from triton._C.libtriton import ir
from triton.language import core
from triton.runtime import interpreter, jit

_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32"}
# Entries before and behind an array.
_BAND = 256
# The interpreter replaces functions of Triton's while it runs.
_LOCK = threading.RLock()


def _nothing(shape: Any, dtype: Any) -> np.ndarray:
    """An array of what no kernel may read, and none leave where it should write."""
    return np.full(shape, -(2**30) if np.dtype(dtype).kind == "i" else np.nan, dtype)


class _Tensor:
    """What the interpreter wants of a tensor: the address of an array between two bands."""

    def __init__(self, array: np.ndarray) -> None:
        self._whole = _nothing(array.size + 2 * _BAND, array.dtype)
        self.array = self._whole[_BAND : _BAND + array.size].reshape(array.shape)
        self.array[...] = array
        self.dtype = _TYPES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data if self.array.size else self._whole[_BAND:].ctypes.data

    def check_bands(self) -> None:
        """Raise an error if something was written outside of the array."""
        bands = self._whole[:_BAND], self._whole[len(self._whole) - _BAND :]
        for band in bands:
            nothing = _nothing(band.shape, band.dtype)
            if not np.array_equal(band.view(np.uint8), nothing.view(np.uint8)):
                raise RuntimeError("a kernel wrote outside of its arrays")

    # A device's memory, and its copy on the host, are one here.
    def untyped_storage(self) -> _Tensor:
        return self

    def cpu(self) -> _Tensor:
        return self

    def new_empty(self, *_: Any, **__: Any) -> _Tensor:
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return ()

    def stride(self) -> tuple[int, ...]:
        return ()

    def set_(self, *_: Any) -> None:
        pass

    def copy_(self, _: Any) -> None:
        pass


def call(
    kernel: Any,
    grid: int,
    arrays: Sequence[jax.Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    **statics: Any,
) -> tuple[jax.Array, ...]:
    """Run a kernel interpreted; arguments as of `natjax.kernels.backends.jax_triton.library.call`.

    What it does not write is nan.

    Raises:
      NotImplementedError: the program is partitioned over devices, or may be. JAX does not keep
        what calls Python back from within one alive, so it would crash.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and any(kind != AxisType.Manual for kind in mesh.axis_types):
        raise NotImplementedError(
            'implementation "jax_triton" runs interpreted on one device, or inside of '
            f"jax.shard_map; got a mesh of the axes {mesh.axis_names}; use "
            'implementation="pallas_triton"'
        )

    def run(*values: Any) -> tuple[np.ndarray, ...]:
        ins = [_Tensor(np.asarray(x)) for x in values]
        outs = [_Tensor(_nothing(x.shape, x.dtype)) for x in outputs]
        with _LOCK, _interpreting(), np.errstate(all="ignore"):
            interpreter.InterpretedFunction(kernel.fn)[(grid,)](*ins, *outs, **statics)
        for tensor in (*ins, *outs):
            tensor.check_bands()
        return tuple(x.array for x in outs)

    return tuple(jax.pure_callback(run, tuple(outputs), *arrays, vmap_method="sequential"))


@contextlib.contextmanager
def _interpreting() -> Iterator[None]:
    """Let functions of Triton's language call one another on arrays of NumPy.

    They do already where TRITON_INTERPRET was set before Triton was imported; but then nothing can
    be compiled in the same process.
    """
    builder = interpreter.interpreter_builder
    # Checks for overflow would take half of the time.
    options = dataclasses.replace(builder.options, sanitize_overflow=False)
    replacements = [
        (jit.JITFunction, "__call__", _call_interpreted),
        (builder, "options", options),
        (interpreter.InterpreterBuilder, "create_dot", _dot),
    ]
    with contextlib.ExitStack() as stack:
        # The interpreter gives back what it replaces of the modules that a kernel names; functions
        # that the kernel calls name another.
        modules = types.SimpleNamespace(__globals__={"tl": tl, "core": core})
        stack.callback(interpreter._patch_lang(modules).restore)
        for owner, name, value in replacements:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def _call_interpreted(function: triton.JITFunction, *args: Any, **kwargs: Any) -> Any:
    return _rewritten(function.fn)(*args, **kwargs)


@functools.cache
def _rewritten(function: Callable[..., Any]) -> Callable[..., Any]:
    return interpreter.InterpretedFunction(function).rewrite()


def _dot(_: Any, a: Any, b: Any, acc: Any, precision: Any, *__: Any) -> Any:
    """A product in float32, of operands in TF32 if asked for.

    The interpreter's own multiplies the bits of bfloat16, and all of float32.
    """
    a, b = _as_float32(a), _as_float32(b)
    if precision == ir.INPUT_PRECISION.TF32:
        a, b = _cut(a), _cut(b)
    return interpreter.TensorHandle(np.matmul(a, b) + acc.data, acc.dtype.scalar)


def _cut(x: np.ndarray) -> np.ndarray:
    """What tensor cores see of float32 numbers: all but the last 13 bits."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _as_float32(x: Any) -> np.ndarray:
    if x.dtype.scalar == tl.bfloat16:  # which the interpreter keeps as integers
        return (x.data.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(x.data, np.float32)
