"""Implementation "triton": Pallas kernels for NVIDIA GPUs since Ampere, lowered by Triton.

A program owns a tile of queries (of keys, in the backward pass for keys and values) and walks over
the slab of keys that they meet, block by block (`natjax.kernels.blocks`), as flash attention does
over all keys: no logits reach memory. Arrays are read in place, through token indices, so neither
dilation nor borders need a copy.

Bias and mask are one thing, what to *add* to the logits. Blocks look alike but at the borders, so a
small table, made from the bias once a call, holds every block there is; a program loads the one it
needs as it loads keys. Without a bias and with windows so large that the table would be too,
kernels compute the mask instead.

Gradients are recomputed from the log-sum-exp, and are deterministic: those of keys and values by
programs that own keys and walk over the queries that see them; that of the bias by summing blocks
of one kind, first within programs, then over them, then by bias.

References:
  Hassani et al., *Faster Neighborhood Attention*, 2024 (fused neighborhood attention);
  Dao et al., *FlashAttention*, 2022 (online softmax, recomputation).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from natjax.kernels import configs, device
from natjax.kernels.blocks import Blocks, Tile
from natjax.kernels.configs import Kernel, KernelConfig, Op, Shape, padded_head_dim
from natjax.kernels.merge import merge_attentions
from natjax.kernels.spmd import align_varying, split_over_batch_and_heads
from natjax.kernels.window import Neighborhood

# Added to hidden logits: finite, so that no difference of them is nan.
_HIDDEN = -1e30
_LOG2_E = math.log2(math.e)
_DTYPES = ("bfloat16", "float16", "float32")
_LARGEST_HEAD = 256
# Entries of a table of blocks, 256 MiB of float32, and of one axis of it while it is planned.
_LARGEST_TABLE = 2**26
# Up to which a mask is laid out in a table too, rather than computed.
_SMALL_TABLE = 2**20
_LARGEST_AXIS = 2**24
# Rows of arrays are numbered by 32-bit integers.
_INDEXABLE = 2**31
# What the programs that sum blocks for the gradient of the bias should number, at most.
_DBIAS_PROGRAMS = 2048


def attention(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    value: Float[Array, "B *X M Dv"],
    hood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
    additional_keys: Float[Array, "B E M D"] | None,
    additional_values: Float[Array, "B E M Dv"] | None,
) -> tuple[Float[Array, "B *X N Dv"], Float[Array, "B *X N"]]:
    """See `natjax.kernels.reference.attention`; reverse mode once, by `jax.custom_vjp`.

    Raises:
      NotImplementedError: no GPU, or a dtype or size that the kernels do not take.
    """
    call = _Call.of("attention", query, value, hood, rpb, scale)
    _require_indexable(math.prod(query.shape[:-1]))
    extra = () if additional_keys is None else (additional_keys, additional_values)
    with _reverse_mode_only():
        return _run_attention(call, (query, key, value), rpb, extra)


@functools.partial(jax.jit, static_argnums=0)
def _run_attention(
    call: _Call, arrays: tuple[Array, ...], rpb: Array | None, extra: tuple[Array, ...]
) -> tuple[Array, Array]:
    q, k, v, *bias = align_varying(*map(_flat, arrays), *_flat_bias(rpb))
    out, lse = _attention(call, q, k, v, *bias)
    if extra:
        parts = (out, lse), _attend_to_all(q, *extra, call)
        out, lse = merge_attentions(*zip(*parts, strict=True))
    shape = arrays[0].shape[:-1]
    return out.reshape(*shape, out.shape[-1]), lse.reshape(shape)


def qk(
    query: Float[Array, "B *X N D"],
    key: Float[Array, "B *X M D"],
    hood: Neighborhood,
    *,
    rpb: Float[Array, "N *R"] | None,
    scale: float,
) -> Float[Array, "B *X N K"]:
    """See `natjax.kernels.reference.qk`; reverse mode once, by `jax.custom_vjp`.

    Raises:
      NotImplementedError: no GPU, or a dtype or size that the kernels do not take.
    """
    call = _Call.of("qk", query, key, hood, rpb, scale)
    _require_indexable(math.prod(query.shape[:-1]) * hood.num_neighbors)
    with _reverse_mode_only():
        logits = _run_qk(call, _flat(query), _flat(key), *_flat_bias(rpb))
    return logits.reshape(*query.shape[:-1], hood.num_neighbors)


def av(
    weights: Float[Array, "B *X N K"],
    value: Float[Array, "B *X M Dv"],
    hood: Neighborhood,
) -> Float[Array, "B *X N Dv"]:
    """See `natjax.kernels.reference.av`; reverse mode once, by `jax.custom_vjp`.

    Raises:
      NotImplementedError: no GPU, or a dtype or size that the kernels do not take.
    """
    call = _Call.of("av", value, value, hood, None, 1.0)
    _require_indexable(weights.size)
    with _reverse_mode_only():
        out = _run_av(call, _flat(weights), _flat(value))
    return out.reshape(*weights.shape[:-1], value.shape[-1])


@contextlib.contextmanager
def _reverse_mode_only() -> Iterator[None]:
    """Say who has forward mode, where JAX notices it here and not later, compiling a caller."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise NotImplementedError(
            'implementation "triton" has no forward mode; use implementation="xla"'
        ) from error


def _flat(x: Array) -> Array:
    """Tokens as one dimension: ``[B, T, N, D]``."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:-2]), *x.shape[-2:])


def _flat_bias(rpb: Array | None) -> tuple[Array, ...]:
    return () if rpb is None else (rpb.reshape(rpb.shape[0], -1),)


# What is supported, and with which settings.


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """What the kernels are specialised for, besides batch and heads."""

    shape: Shape
    scale: float
    interpret: bool
    tf32: bool
    settings: tuple[tuple[Kernel, KernelConfig], ...]
    # Those that take what to add to the logits from a table of blocks, instead of computing a mask.
    with_table: frozenset[Kernel]

    @classmethod
    def of(
        cls,
        op: Op,
        query: Array,
        value: Array,
        hood: Neighborhood,
        rpb: Array | None,
        scale: float,
    ) -> _Call:
        _require_device()
        _require_arrays(query, value)
        shape = Shape(hood, query.shape[-1], value.shape[-1], query.dtype.name, rpb is not None)
        kind = device.kind()
        kernels = configs.kernels_of(op, shape.has_bias)
        settings = {kernel: configs.resolve(kernel, shape, kind)[0] for kernel in kernels}
        tables = {
            kernel: _table_entries(config.blocks(kernel, hood))
            for kernel, config in settings.items()
            if _takes_table(kernel, shape)
        }
        if rpb is not None:
            _require_tables(rpb.shape[0], max(tables.values()), hood)
        with_table = (k for k, size in tables.items() if shape.has_bias or size <= _SMALL_TABLE)
        return cls(
            shape=shape,
            scale=scale,
            interpret=device.is_interpreted(),
            tf32=_allows_tf32(),
            settings=tuple(settings.items()),
            with_table=frozenset(with_table),
        )

    def config(self, kernel: Kernel) -> KernelConfig:
        return dict(self.settings)[kernel]

    def blocks(self, kernel: Kernel) -> Blocks:
        return self.config(kernel).blocks(kernel, self.shape.hood)


def _takes_table(kernel: Kernel, shape: Shape) -> bool:
    """Logits that are hidden are not stored by "qk", so without a bias there is nothing to add."""
    return kernel not in ("av", "av_transposed") and (kernel != "qk" or shape.has_bias)


def _require_tables(heads: int, largest: int, hood: Neighborhood) -> None:
    if heads * largest > _LARGEST_TABLE:
        raise NotImplementedError(
            'implementation "triton" takes a relative position bias where a table of what '
            f"blocks look like, for all heads, has at most {_LARGEST_TABLE} entries; got "
            f"kernel_size={hood.kernel_size} and {heads} heads; use "
            'implementation="xla"'
        )


def _require_device() -> None:
    target = device.target()
    if device.is_interpreted() or _is_ampere_or_later(target):
        return
    raise NotImplementedError(
        f'implementation "triton" needs an NVIDIA GPU, Ampere or later; got {target.device_kind!r} '
        f'({target.platform}); use implementation="xla", or set the environment variable '
        f"{device.INTERPRET}=1 to run the kernels interpreted, slowly, for tests"
    )


def _is_ampere_or_later(target: Any) -> bool:
    """Abstract devices tell their kind alone; older ones are refused when they are compiled for."""
    capability = getattr(target, "compute_capability", "8.0")
    is_nvidia = str(capability).replace(".", "", 1).isdigit()  # "9.0", or "gfx942" for AMD's
    return target.platform == "gpu" and is_nvidia and float(capability) >= 8


def _require_arrays(query: Array, value: Array) -> None:
    if query.dtype.name not in _DTYPES:
        raise NotImplementedError(
            f'implementation "triton" takes the dtypes {_DTYPES}; got {query.dtype.name}; use '
            'implementation="xla"'
        )
    largest = max(query.shape[-1], value.shape[-1])
    if largest > _LARGEST_HEAD:
        raise NotImplementedError(
            f'implementation "triton" takes head sizes up to {_LARGEST_HEAD}; got {largest}; use '
            'implementation="xla"'
        )


def _require_indexable(entries: int) -> None:
    if entries >= _INDEXABLE:
        raise NotImplementedError(
            'implementation "triton" takes fewer than 2**31 queries, times heads, and times window '
            f'slots in the unfused ops; got {entries}; use implementation="xla"'
        )


def _allows_tf32() -> bool:
    """Whether float32 products may be rounded to TF32: JAX's own setting, off by default."""
    return jax.config.jax_default_matmul_precision in ("high", "tensorfloat32", "bfloat16_3x")


@functools.lru_cache(256)
def _table_entries(blocks: Blocks) -> int:
    """Entries of a table of blocks for one head; more than any limit if not worth counting."""
    for axis in blocks.axes:
        if axis.num_tiles * axis.tile * axis.num_chunks * axis.chunk > _LARGEST_AXIS:
            return 2**62
    return blocks.pattern.num_kinds * blocks.num_chunks * blocks.num_rows * blocks.num_columns


# Inside a kernel.


@dataclasses.dataclass(frozen=True)
class _Program:
    """One program of a kernel: which tile of which head and image, and how it reads and writes.

    Arrays of ``[B, T, N, D]`` are seen as ``[B * T * N, D]``.
    """

    call: _Call
    tile: Tile
    batch: Any
    head: Any

    def rows(self) -> _Tokens:
        return self._tokens(self.tile.rows())

    def columns(self, chunk: Any) -> _Tokens:
        return self._tokens(self.tile.columns(chunk))

    def _tokens(self, positions: tuple[Any, ...]) -> _Tokens:
        token, exists = self.tile.tokens(positions)
        return _Tokens(positions, self.batch * self.tile.blocks.num_tokens + token, exists)

    def dot(self, a: Array, b: Array, *, transpose: bool = False) -> Array:
        """``a @ b``, or ``a @ b.T``, in float32."""
        precision = None
        if a.dtype == jnp.float32:
            precision = jax.lax.Precision.HIGH if self.call.tf32 else jax.lax.Precision.HIGHEST
        return plgpu.dot(a, b, trans_b=transpose, precision=precision)

    def seen(self, rows: _Tokens, columns: _Tokens) -> Array:
        return self.tile.is_neighbor(rows.positions, columns.positions)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Some tokens: where along each axis, which of all images' tokens, and whether they exist."""

    positions: tuple[Any, ...]
    index: Any
    exists: Any

    def load(self, ref: Any, head: Any, heads: int) -> Array:
        """Their rows of a ``[B * T * heads, D]`` array, zeros where there are none."""
        pointer, mask = self._pointer(ref, head, heads)
        return plgpu.load(pointer, mask=mask, other=0.0)

    def store(self, ref: Any, head: Any, heads: int, value: Array) -> None:
        pointer, mask = self._pointer(ref, head, heads, outside=ref.shape[0])
        plgpu.store(pointer, value.astype(ref.dtype), mask=mask)

    def load_scalars(self, ref: Any, head: Any, heads: int) -> Array:
        """Their entries of a ``[B * T * heads]`` array, zeros where there are none."""
        index = jnp.where(self.exists, self.index * heads + head, 0)
        return plgpu.load(ref.at[index], mask=self.exists, other=0.0)

    def store_scalars(self, ref: Any, head: Any, heads: int, value: Array) -> None:
        index = jnp.where(self.exists, self.index * heads + head, ref.shape[0])
        plgpu.store(ref.at[index], value.astype(ref.dtype), mask=self.exists)

    def _pointer(self, ref: Any, head: Any, heads: int, outside: int = 0) -> tuple[Any, Array]:
        width = ref.shape[1]
        lane = jnp.arange(padded_head_dim(width), dtype=jnp.int32)[None, :]
        mask = self.exists[:, None] & (lane < width)
        # The interpreter must not see a lane that is masked off point at a live address.
        row = jnp.where(self.exists, self.index * heads + head, outside)
        return ref.at[row[:, None], lane], mask


def _program(call: _Call, kernel: Kernel, heads: int) -> _Program:
    """The program that runs: tiles fastest, so that neighbors in time share their slabs."""
    blocks = call.blocks(kernel)
    number = pl.program_id(0)
    tile, rest = number % blocks.num_tiles, number // blocks.num_tiles
    return _Program(call, blocks.tile_at(tile), batch=rest // heads, head=rest % heads)


class _Penalty:
    """What to add to the logits of each block of a program: from a table, or the mask alone."""

    def __init__(self, program: _Program, refs: tuple[Any, ...], head: Any) -> None:
        self._program = program
        self._table = None
        if refs:
            self._table, kinds = refs
            self._kind = kinds[program.tile.number]
            self._head = head if self._table.shape[0] > 1 else 0

    def add(self, logits: Array, rows: _Tokens, columns: _Tokens, chunk: Any) -> Array:
        if self._table is not None:
            return logits + self._table[self._head, self._kind, chunk]
        return jnp.where(self._program.seen(rows, columns), logits, _HIDDEN)


def _fold(count: int, body: Callable[[Any, Any], Any], start: Any) -> Any:
    """``body(count - 1, ... body(0, start))``, without a loop where there is nothing to repeat."""
    if count == 1:
        return body(jnp.int32(0), start)
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), body, start)


def _zeros(*shape: int) -> Array:
    return jnp.zeros(shape, jnp.float32)


# Fused kernels. Logits are in units of log2(e), so that exp2 is all they need.


def _forward_kernel(q_ref, k_ref, v_ref, *refs, call: _Call, heads: int, kv_heads: int):
    *table, out_ref, lse_ref = refs
    program = _program(call, "forward", heads)
    penalty = _Penalty(program, tuple(table), program.head)
    kv_head = program.head // (heads // kv_heads)
    rows = program.rows()
    q = rows.load(q_ref, program.head, heads)
    factor = call.scale * _LOG2_E

    def body(chunk, carry):
        top, total, acc = carry
        columns = program.columns(chunk)
        logits = program.dot(q, columns.load(k_ref, kv_head, kv_heads), transpose=True) * factor
        logits = penalty.add(logits, rows, columns, chunk)
        new_top = jnp.maximum(top, logits.max(axis=1))
        shrink = jnp.exp2(top - new_top)
        shares = jnp.exp2(logits - new_top[:, None])
        v = columns.load(v_ref, kv_head, kv_heads)
        acc = acc * shrink[:, None] + program.dot(shares.astype(v.dtype), v)
        return new_top, total * shrink + shares.sum(axis=1), acc

    n = rows.index.shape[0]
    start = (
        jnp.full((n,), _HIDDEN, jnp.float32),
        _zeros(n),
        _zeros(n, padded_head_dim(v_ref.shape[1])),
    )
    top, total, acc = _fold(program.tile.blocks.num_chunks, body, start)
    rows.store(out_ref, program.head, heads, acc / total[:, None])
    rows.store_scalars(lse_ref, program.head, heads, (top + jnp.log2(total)) / _LOG2_E)


def _dquery_kernel(
    q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, *refs, call: _Call, heads: int, kv_heads: int
):
    *table, dq_ref = refs
    program = _program(call, "dquery", heads)
    penalty = _Penalty(program, tuple(table), program.head)
    kv_head = program.head // (heads // kv_heads)
    rows = program.rows()
    q, do = (rows.load(ref, program.head, heads) for ref in (q_ref, do_ref))
    lse = rows.load_scalars(lse_ref, program.head, heads) * _LOG2_E
    delta = rows.load_scalars(delta_ref, program.head, heads)

    def body(chunk, dq):
        columns = program.columns(chunk)
        k, v = (columns.load(ref, kv_head, kv_heads) for ref in (k_ref, v_ref))
        logits = program.dot(q, k, transpose=True) * (call.scale * _LOG2_E)
        shares = jnp.exp2(penalty.add(logits, rows, columns, chunk) - lse[:, None])
        dlogits = shares * (program.dot(do, v, transpose=True) - delta[:, None])
        return dq + program.dot(dlogits.astype(k.dtype), k)

    start = _zeros(rows.index.shape[0], padded_head_dim(q_ref.shape[1]))
    dq = _fold(program.tile.blocks.num_chunks, body, start)
    rows.store(dq_ref, program.head, heads, dq * call.scale)


def _dkeyvalue_kernel(
    q_ref, k_ref, v_ref, do_ref, lse_ref, delta_ref, *refs, call: _Call, heads: int, kv_heads: int
):
    *table, dk_ref, dv_ref = refs
    program = _program(call, "dkeyvalue", kv_heads)
    groups = heads // kv_heads
    rows = program.rows()
    k, v = (rows.load(ref, program.head, kv_heads) for ref in (k_ref, v_ref))
    n = rows.index.shape[0]

    def of_head(head, sums):
        penalty = _Penalty(program, tuple(table), head)

        def body(chunk, carry):
            dk, dv = carry
            columns = program.columns(chunk)
            q, do = (columns.load(ref, head, heads) for ref in (q_ref, do_ref))
            lse = columns.load_scalars(lse_ref, head, heads) * _LOG2_E
            delta = columns.load_scalars(delta_ref, head, heads)
            logits = program.dot(k, q, transpose=True) * (call.scale * _LOG2_E)
            shares = jnp.exp2(penalty.add(logits, rows, columns, chunk) - lse[None, :])
            dv += program.dot(shares.astype(do.dtype), do)
            dlogits = shares * (program.dot(v, do, transpose=True) - delta[None, :])
            return dk + program.dot(dlogits.astype(q.dtype), q), dv

        return _fold(program.tile.blocks.num_chunks, body, sums)

    sums = (_zeros(n, padded_head_dim(k_ref.shape[1])), _zeros(n, padded_head_dim(v_ref.shape[1])))
    first = program.head * groups
    sums = _fold(groups, lambda i, sums: of_head(first + i, sums), sums)
    rows.store(dk_ref, program.head, kv_heads, sums[0] * call.scale)
    rows.store(dv_ref, program.head, kv_heads, sums[1])


def _dbias_kernel(
    q_ref,
    k_ref,
    v_ref,
    do_ref,
    lse_ref,
    delta_ref,
    table_ref,
    order_ref,
    first_ref,
    sums_ref,
    *,
    call: _Call,
    heads: int,
    kv_heads: int,
    batch: int,
):
    """Sums one block of all tiles of a kind, over its share of tiles and images."""
    blocks = call.blocks("dbias")
    splits, _, kinds, chunks = sums_ref.shape[:4]
    number = pl.program_id(0)
    chunk, number = number % chunks, number // chunks
    kind, number = number % kinds, number // kinds
    head, split = number % heads, number // heads
    kv_head = head // (heads // kv_heads)
    first, stop = first_ref[kind], first_ref[kind + 1]
    count = (stop - first) * batch
    block = table_ref[head, kind, chunk]

    def body(i, total):
        item = i * splits + split
        tile = order_ref[first + item // batch]
        program = _Program(call, blocks.tile_at(tile), batch=item % batch, head=head)
        rows, columns = program.rows(), program.columns(chunk)
        q, do = (rows.load(ref, head, heads) for ref in (q_ref, do_ref))
        k, v = (columns.load(ref, kv_head, kv_heads) for ref in (k_ref, v_ref))
        lse = rows.load_scalars(lse_ref, head, heads) * _LOG2_E
        delta = rows.load_scalars(delta_ref, head, heads)
        logits = program.dot(q, k, transpose=True) * (call.scale * _LOG2_E) + block
        shares = jnp.exp2(logits - lse[:, None])
        return total + shares * (program.dot(do, v, transpose=True) - delta[:, None])

    start = _zeros(blocks.num_rows, blocks.num_columns)
    rounds = (count - split + splits - 1) // splits
    sums_ref[split, head, kind, chunk] = jax.lax.fori_loop(jnp.int32(0), rounds, body, start)


# Unfused kernels. Weights of [B, T, N, K] are seen as [B * T * N * K].


def _slots(program: _Program, rows: _Tokens, columns: _Tokens, heads: int, head: Any, queries: Any):
    """Index of each pair of a block in the weights, and whether there is such a pair."""
    seen = program.seen(rows, columns)
    slot = program.tile.slot(rows.positions, columns.positions)
    neighbors = program.call.shape.hood.num_neighbors
    return (queries * heads + head) * neighbors + slot, seen


def _qk_kernel(q_ref, k_ref, *refs, call: _Call, heads: int, kv_heads: int):
    *table, logits_ref = refs
    program = _program(call, "qk", heads)
    penalty = _Penalty(program, tuple(table), program.head) if table else None
    kv_head = program.head // (heads // kv_heads)
    rows = program.rows()
    q = rows.load(q_ref, program.head, heads)

    def body(chunk, carry):
        columns = program.columns(chunk)
        k = columns.load(k_ref, kv_head, kv_heads)
        logits = program.dot(q, k, transpose=True) * call.scale
        if penalty is not None:
            logits = penalty.add(logits, rows, columns, chunk)
        queries = rows.index[:, None]
        index, seen = _slots(program, rows, columns, heads, program.head, queries)
        index = jnp.where(seen, index, logits_ref.shape[0])
        plgpu.store(logits_ref.at[index], logits.astype(logits_ref.dtype), mask=seen)
        return carry

    _fold(program.tile.blocks.num_chunks, body, jnp.int32(0))


def _av_kernel(w_ref, v_ref, out_ref, *, call: _Call, heads: int, kv_heads: int):
    program = _program(call, "av", heads)
    kv_head = program.head // (heads // kv_heads)
    rows = program.rows()

    def body(chunk, acc):
        columns = program.columns(chunk)
        queries = rows.index[:, None]
        index, seen = _slots(program, rows, columns, heads, program.head, queries)
        w = plgpu.load(w_ref.at[jnp.where(seen, index, 0)], mask=seen, other=0.0)
        return acc + program.dot(w, columns.load(v_ref, kv_head, kv_heads))

    start = _zeros(rows.index.shape[0], padded_head_dim(v_ref.shape[1]))
    acc = _fold(program.tile.blocks.num_chunks, body, start)
    rows.store(out_ref, program.head, heads, acc * call.scale)


def _av_transposed_kernel(w_ref, x_ref, out_ref, *, call: _Call, heads: int, kv_heads: int):
    """For each key, the sum over the queries that see it of weight times ``x`` of the query."""
    program = _program(call, "av_transposed", kv_heads)
    groups = heads // kv_heads
    rows = program.rows()

    def of_head(head, acc):
        def body(chunk, acc):
            columns = program.columns(chunk)
            queries = columns.index[None, :]
            index, seen = _slots(program, rows, columns, heads, head, queries)
            w = plgpu.load(w_ref.at[jnp.where(seen, index, 0)], mask=seen, other=0.0)
            return acc + program.dot(w, columns.load(x_ref, head, heads))

        return _fold(program.tile.blocks.num_chunks, body, acc)

    acc = _zeros(rows.index.shape[0], padded_head_dim(x_ref.shape[1]))
    first = program.head * groups
    acc = _fold(groups, lambda i, acc: of_head(first + i, acc), acc)
    rows.store(out_ref, program.head, kv_heads, acc * call.scale)


# Launching kernels.


def _launch(
    call: _Call,
    kernel: Kernel,
    body: Callable[..., None],
    grid: int,
    outputs: list[jax.ShapeDtypeStruct],
    *arrays: Array,
    **sizes: int,
) -> tuple[Array, ...]:
    """Run a kernel on arrays seen as rows; results are as declared."""
    if grid == 0:
        return tuple(jnp.zeros(x.shape, x.dtype) for x in outputs)
    config = call.config(kernel)
    arrays = align_varying(*arrays)
    varying = jax.typeof(arrays[0]).manual_axis_type
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying) for x in outputs]
    body = functools.partial(body, call=call, **sizes)
    body.__name__ = f"natjax_{kernel}"  # pyrefly: ignore[missing-attribute]
    run = pl.pallas_call(
        body,
        grid=(grid,),
        out_shape=outputs,
        interpret=call.interpret,
        compiler_params=plgpu.CompilerParams(
            num_warps=config.num_warps, num_stages=config.num_stages
        ),
        name=f"natjax_{kernel}",
    )
    return tuple(run(*arrays))


def _as_rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _table(call: _Call, kernel: Kernel, rpb: tuple[Array, ...], factor: float) -> tuple[Array, ...]:
    """The table of blocks and the kind of each tile, if the kernel takes them."""
    if kernel not in call.with_table:
        return ()
    pattern = call.blocks(kernel).pattern
    bias = rpb[0].reshape(-1, *call.shape.hood.bias_shape) if rpb else None
    return pattern.table(bias, _HIDDEN, factor), jnp.asarray(pattern.kind)


def _table_labels(rpb: tuple[Array, ...]) -> str:
    """Dimensions of `_table`: a table without a bias has one head for all."""
    return f",{'n' if rpb else 'h'}kcrs,i"


def _forward(call: _Call, q: Array, k: Array, v: Array, *table: Array) -> tuple[Array, Array]:
    heads = q.shape[2]
    rows = q.shape[0] * q.shape[1] * heads
    out, lse = _launch(
        call,
        "forward",
        _forward_kernel,
        q.shape[0] * heads * call.blocks("forward").num_tiles,
        [
            jax.ShapeDtypeStruct((rows, v.shape[-1]), q.dtype),
            jax.ShapeDtypeStruct((rows,), jnp.float32),
        ],
        *map(_as_rows, (q, k, v)),
        *table,
        heads=heads,
        kv_heads=k.shape[2],
    )
    return out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1])


def _seen_as_rows(q: Array, k: Array, v: Array, do: Array, *scalars: Array) -> tuple[Array, ...]:
    return (*map(_as_rows, (q, k, v, do)), *(x.reshape(-1) for x in scalars))


def _dquery(call: _Call, *arrays: Array) -> tuple[Array]:
    (q, k), table = arrays[:2], arrays[6:]
    (dq,) = _launch(
        call,
        "dquery",
        _dquery_kernel,
        q.shape[0] * q.shape[2] * call.blocks("dquery").num_tiles,
        [jax.ShapeDtypeStruct(_as_rows(q).shape, q.dtype)],
        *_seen_as_rows(*arrays[:6]),
        *table,
        heads=q.shape[2],
        kv_heads=k.shape[2],
    )
    return (dq.reshape(q.shape),)


def _dkeyvalue(call: _Call, *arrays: Array) -> tuple[Array, Array]:
    (q, k, v), table = arrays[:3], arrays[6:]
    dk, dv = _launch(
        call,
        "dkeyvalue",
        _dkeyvalue_kernel,
        k.shape[0] * k.shape[2] * call.blocks("dkeyvalue").num_tiles,
        [jax.ShapeDtypeStruct(_as_rows(x).shape, x.dtype) for x in (k, v)],
        *_seen_as_rows(*arrays[:6]),
        *table,
        heads=q.shape[2],
        kv_heads=k.shape[2],
    )
    return dk.reshape(k.shape), dv.reshape(v.shape)


def _dbias_plan(call: _Call) -> tuple[Array, Array]:
    """Tiles sorted by kind, and where each kind begins."""
    kind = call.blocks("dbias").pattern.kind
    order = np.argsort(kind, kind="stable")
    first = np.searchsorted(kind[order], np.arange(kind.max() + 2))
    return jnp.asarray(order, jnp.int32), jnp.asarray(first, jnp.int32)


def _dbias(call: _Call, *arrays: Array) -> tuple[Array]:
    """Sums of the gradients of all blocks that took the same entries of the table."""
    q, k, table, order, first = *arrays[:2], *arrays[6:]
    items = q.shape[0] * order.shape[0]
    programs = math.prod(table.shape[:3])
    splits = max(1, min(_DBIAS_PROGRAMS // programs, _LARGEST_TABLE // table.size, items))
    (sums,) = _launch(
        call,
        "dbias",
        _dbias_kernel,
        splits * programs if items else 0,
        [jax.ShapeDtypeStruct((splits, *table.shape), jnp.float32)],
        *_seen_as_rows(*arrays[:6]),
        table,
        order,
        first,
        heads=q.shape[2],
        kv_heads=k.shape[2],
        batch=q.shape[0],
    )
    return (sums.sum(axis=0),)


def _logits(call: _Call, q: Array, k: Array, *table: Array) -> tuple[Array]:
    heads, neighbors = q.shape[2], call.shape.hood.num_neighbors
    (logits,) = _launch(
        call,
        "qk",
        _qk_kernel,
        q.shape[0] * heads * call.blocks("qk").num_tiles,
        [jax.ShapeDtypeStruct((math.prod(q.shape[:3]) * neighbors,), q.dtype)],
        *map(_as_rows, (q, k)),
        *table,
        heads=heads,
        kv_heads=k.shape[2],
    )
    return (logits.reshape(*q.shape[:3], neighbors),)


def _sum_of_neighbors(call: _Call, w: Array, v: Array) -> tuple[Array]:
    heads = w.shape[2]
    (out,) = _launch(
        call,
        "av",
        _av_kernel,
        w.shape[0] * heads * call.blocks("av").num_tiles,
        [jax.ShapeDtypeStruct((math.prod(w.shape[:3]), v.shape[-1]), w.dtype)],
        w.reshape(-1),
        _as_rows(v),
        heads=heads,
        kv_heads=v.shape[2],
    )
    return (out.reshape(*w.shape[:3], v.shape[-1]),)


def _sum_of_queries(groups: int, call: _Call, w: Array, x: Array) -> tuple[Array]:
    batch, tokens, heads, width = x.shape
    # At least the one key head that devices share, where each has a part of its query heads.
    kv_heads = max(1, heads // groups)
    (out,) = _launch(
        call,
        "av_transposed",
        _av_transposed_kernel,
        batch * kv_heads * call.blocks("av_transposed").num_tiles,
        [jax.ShapeDtypeStruct((batch * tokens * kv_heads, width), x.dtype)],
        w.reshape(-1),
        _as_rows(x),
        heads=heads,
        kv_heads=kv_heads,
    )
    return (out.reshape(batch, tokens, kv_heads, width),)


# The ops between kernels and JAX: batching, partitioning, derivatives. One of each a call, since
# what JAX needs to know of them depends on it.


@functools.lru_cache(512)
def _op(function: Callable[..., Any], call: _Call, labels: str, groups: int) -> Callable[..., Any]:
    """A launch as an op that is vmapped and partitioned; ``labels`` as in ``"btnd,btmd->btnd"``."""
    operands, results = (side.split(",") for side in labels.split("->"))
    function = functools.partial(function, call)
    return split_over_batch_and_heads(function, operands, results, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(call: _Call, q: Array, k: Array, v: Array, *rpb: Array) -> tuple[Array, Array]:
    table = _table(call, "forward", rpb, _LOG2_E)
    labels = f"btnd,btmd,btme{_table_labels(rpb) if table else ''}->btne,btn"
    return _op(_forward, call, labels, _groups(q, k))(q, k, v, *table)


def _attention_forward(call: _Call, q: Array, k: Array, v: Array, *rpb: Array) -> Any:
    out, lse = _attention(call, q, k, v, *rpb)
    return (out, lse), (q, k, v, rpb, out, lse)


def _attention_backward(call: _Call, residuals: Any, cotangents: Any) -> tuple[Array, ...]:
    q, k, v, rpb, out, lse = residuals
    do, dlse = cotangents
    delta = jnp.sum(out.astype(jnp.float32) * do.astype(jnp.float32), axis=-1) - dlse
    arrays = (q, k, v, do, lse, delta)

    def run(kernel: Kernel, function: Callable[..., Any], results: str, *plan: Array) -> Any:
        table = _table(call, kernel, rpb, _LOG2_E)
        extra = (table[0], *plan) if plan else table
        labels = f"btnd,btmd,btme,btne,btn,btn{_table_labels(rpb) if table else ''}"
        op = _op(function, call, f"{labels}{',j' if plan else ''}->{results}", _groups(q, k))
        return _once("na*d", op)(*arrays, *extra)

    (dq,) = run("dquery", _dquery, "btnd")
    dk, dv = run("dkeyvalue", _dkeyvalue, "btmd,btme")
    if not rpb:
        return dq, dk, dv
    (sums,) = run("dbias", _dbias, "nkcrs", *_dbias_plan(call))
    drpb = call.blocks("dbias").pattern.bias_gradient(sums)
    return dq, dk, dv, drpb.reshape(rpb[0].shape).astype(rpb[0].dtype)


_attention.defvjp(_attention_forward, _attention_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _qk(call: _Call, q: Array, k: Array, *rpb: Array) -> Array:
    table = _table(call, "qk", rpb, 1.0)
    labels = f"btnd,btmd{_table_labels(rpb) if table else ''}->btnw"
    (logits,) = _op(_logits, call, labels, _groups(q, k))(q, k, *table)
    return _fill_hidden(call, logits, -jnp.inf)


def _qk_forward(call: _Call, q: Array, k: Array, *rpb: Array) -> Any:
    return _qk(call, q, k, *rpb), (q, k, rpb)


def _qk_backward(call: _Call, residuals: Any, dlogits: Array) -> tuple[Array, ...]:
    q, k, rpb = residuals
    groups = _groups(q, k)
    dq = _once("na*d_qk", _av_op(call, groups))(dlogits, k)
    dk = _once("na*d_qk", _av_transposed_op(call, groups))(dlogits, q)
    if not rpb:
        return dq, dk
    return dq, dk, _qk_dbias(call, dlogits).reshape(rpb[0].shape).astype(rpb[0].dtype)


_qk.defvjp(_qk_forward, _qk_backward)


@functools.partial(jax.jit, static_argnums=0)
def _run_qk(call: _Call, *arrays: Array) -> Array:
    return _qk(call, *align_varying(*arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _av(call: _Call, w: Array, v: Array) -> Array:
    return _av_op(call, _groups(w, v))(w, v)


def _av_forward(call: _Call, w: Array, v: Array) -> Any:
    return _av(call, w, v), (w, v)


def _av_backward(call: _Call, residuals: Any, do: Array) -> tuple[Array, Array]:
    w, v = residuals
    groups = _groups(w, v)
    (dw,) = _once("na*d_av", _op(_logits, call, "btnd,btmd->btnw", groups))(do, v)
    dv = _once("na*d_av", _av_transposed_op(call, groups))(w, do)
    return _fill_hidden(call, dw, 0.0), dv


_av.defvjp(_av_forward, _av_backward)


@functools.partial(jax.jit, static_argnums=0)
def _run_av(call: _Call, *arrays: Array) -> Array:
    return _av(call, *align_varying(*arrays))


def _groups(query: Array, key: Array) -> int:
    """Query heads for each key head."""
    return query.shape[2] // key.shape[2]


def _av_op(call: _Call, groups: int) -> Callable[[Array, Array], Array]:
    op = _op(_sum_of_neighbors, call, "btnw,btmd->btnd", groups)
    return lambda w, v: op(w, v)[0]


def _av_transposed_op(call: _Call, groups: int) -> Callable[[Array, Array], Array]:
    function = functools.partial(_sum_of_queries, groups)
    op = _op(function, call, "btnw,btnd->btmd", groups)
    return lambda w, x: op(w, x)[0]


def _once(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is part of a derivative and has none of its own."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def rule(primals: Any, tangents: Any) -> Any:
        raise NotImplementedError(
            f'implementation "triton" gives first derivatives in reverse mode only; got a second '
            f'one of {name}; use implementation="xla"'
        )

    return guarded


def _visible_slots(hood: Neighborhood) -> Array:
    """Which window slots of each query hold a key, ``[T, 1, K]``."""
    n = len(hood.axes)
    masks = []
    for i, axis in enumerate(hood.axes):
        query = jnp.arange(axis.length, dtype=jnp.int32)[:, None]
        mask = axis.slot_is_visible(query, jnp.arange(axis.kernel_size, dtype=jnp.int32)[None, :])
        shape = [1] * (2 * n)
        shape[i], shape[n + i] = mask.shape
        masks.append(mask.reshape(shape))
    return functools.reduce(jnp.logical_and, masks).reshape(hood.num_tokens, 1, -1)


def _fill_hidden(call: _Call, weights: Array, value: float) -> Array:
    """Set the empty slots of causal windows, which kernels leave as they are."""
    if not any(axis.is_causal for axis in call.shape.hood.axes):
        return weights
    visible = _visible_slots(call.shape.hood)
    return jnp.where(visible[None], weights, jnp.asarray(value, weights.dtype))


def _qk_dbias(call: _Call, dlogits: Float[Array, "B T N K"]) -> Float[Array, "N *R"]:
    """Sum over images, then over tokens and slots by bias, one axis at a time."""
    hood = call.shape.hood
    sums = _fill_hidden(call, dlogits, 0.0).astype(jnp.float32).sum(axis=0)
    x = sums.transpose(1, 0, 2).reshape(sums.shape[1], *hood.shape, *hood.kernel_size)
    for i, axis in enumerate(hood.axes):
        # Tokens and slots of one axis go, its biases come last.
        query = np.arange(axis.length)[:, None]
        index = axis.bias_index(query, axis.neighbor(query, np.arange(axis.kernel_size)[None]))
        one_hot = jax.nn.one_hot(index, 2 * axis.kernel_size - 1, dtype=jnp.float32)
        axes = ((1, 1 + len(hood.axes) - i), (0, 1))
        x = jnp.tensordot(x, one_hot, axes=axes, precision="highest")
    return x


def _attend_to_all(
    q: Float[Array, "B T N D"],
    keys: Float[Array, "B E M D"],
    values: Float[Array, "B E M Dv"],
    call: _Call,
) -> tuple[Float[Array, "B T N Dv"], Float[Array, "B T N"]]:
    """Attention of every query to the additional keys, which are few; in plain JAX."""
    precision = None if call.tf32 else "highest"

    @jax.checkpoint
    def attend(q: Array, keys: Array, values: Array) -> tuple[Array, Array]:
        heads = keys.shape[2]
        grouped = q.reshape(*q.shape[:2], heads, q.shape[2] // heads, q.shape[-1])
        product = functools.partial(
            jnp.einsum, precision=precision, preferred_element_type=jnp.float32
        )
        logits = call.scale * product("btmgd,bemd->btmge", grouped, keys)
        lse = jax.nn.logsumexp(logits, axis=-1)
        shares = jnp.exp(logits - lse[..., None]).astype(values.dtype)
        out = product("btmge,bemd->btmgd", shares, values)
        out = out.reshape(*q.shape[:-1], values.shape[-1])
        return out.astype(q.dtype), lse.reshape(q.shape[:-1])

    return attend(q, keys, values)
