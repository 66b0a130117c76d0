"""A backend of kernels as small as one can be: dense, in plain JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from natjax.kernels.autodiff import LOG2_E
from natjax.kernels.plan.pattern import HIDDEN, pattern_of

NAME = "toy"
product = functools.partial(jnp.einsum, precision="highest", preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class settings:  # noqa: N801
    tile: tuple[int, ...]
    chunk: tuple[int, ...]
    whole_chunks = False

    @classmethod
    def suggest(cls, kernel, spec):
        return cls(*((side,) * len(spec.neighborhood.axes) for side in (3, 5)))

    def sums_bias(self, spec):
        return spec.dtype == "float32"


def supports(op, spec):
    if spec.dtype == "float64":
        raise NotImplementedError('implementation "toy" has no float64; use implementation="xla"')


@functools.partial(jax.jit, static_argnums=(0, 1))  # its own, since tables become constants of it
def launch(kernel, call, *arrays):
    sums_bias = kernel == "dbias" or (kernel == "dquery" and call.sums_bias)
    if not sums_bias:
        *arrays, _ = arrays  # which chunks a tile meets: here all are computed
    if kernel == "forward":
        return forward(call, *arrays)
    if kernel == "dquery":
        return dquery(call, *arrays)
    return (gradients if kernel.startswith("d") else unfused)(kernel, call, *arrays)


def pairs(kernel, call):
    """Row and column token of each pair of each block; past the last where they see not."""
    plan = call.blocks(kernel)

    def block(number, chunk):
        tile = plan.tile_at(number)
        rows, columns = tile.rows(), tile.columns(chunk)
        tokens = tile.tokens(rows)[0][:, None], tile.tokens(columns)[0][None]
        return [jnp.where(tile.is_neighbor(rows, columns), x, plan.num_tokens) for x in tokens]

    numbers = (jnp.arange(n, dtype=jnp.int32) for n in (plan.num_tiles, plan.num_chunks))
    return jax.vmap(jax.vmap(block, (None, 0)), (0, None))(*numbers)


def logits(kernel, call, q, k, table):
    """``[B, N, queries, keys]``, with what a table adds in units of log2(e)."""
    rows, columns = pairs(kernel, call)
    values = table[0][:, table[1]] if table else jnp.zeros((1, *rows.shape), jnp.float32)
    penalty = jnp.full((len(values), q.shape[1] + 1, q.shape[1] + 1), HIDDEN, jnp.float32)
    penalty = penalty.at[:, rows, columns].set(values)[:, :-1, :-1]
    penalty = (penalty.swapaxes(1, 2) if kernel == "dkeyvalue" else penalty)[None]
    unit = 1.0 if kernel == "qk" else LOG2_E
    z = call.scale * product("bqnd,bknd->bnqk", q, heads(k, q)) + penalty / unit
    return jnp.where(penalty > HIDDEN / 2, z, HIDDEN)


def heads(x, like):
    return jnp.repeat(x, like.shape[2] // x.shape[2], axis=2)


def to_keys(x, like):
    return jnp.stack(jnp.split(x, like.shape[2], axis=2), 2).sum(axis=3).astype(like.dtype)


def forward(call, q, k, v, *table):
    z = logits("forward", call, q, k, table)
    lse = jax.nn.logsumexp(z, axis=-1)
    out = product("bnqk,bknd->bqnd", jnp.exp(z - lse[..., None]), heads(v, q))
    return out.astype(q.dtype), lse.swapaxes(1, 2)


def dquery(call, q, k, v, out, do, lse, dlse, *table):
    delta = (out.astype("float32") * do.astype("float32")).sum(axis=-1) - dlse
    dq, *sums = gradients("dquery", call, q, k, v, do, lse, delta, *table)
    return dq, delta, *sums


def gradients(kernel, call, q, k, v, do, lse, delta, *table):
    kinds = pattern_of(call.blocks(kernel)).kind
    z = logits(kernel, call, q, k, (table[0], kinds) if table else ())
    lse, delta = (x.swapaxes(1, 2)[..., None] for x in (lse, delta))
    probs = jnp.exp(z - lse)
    dz = probs * (product("bqnd,bknd->bnqk", do, heads(v, q)) - delta)
    if kernel == "dkeyvalue":
        dk = call.scale * product("bnqk,bqnd->bknd", dz, q)
        return to_keys(dk, k), to_keys(product("bnqk,bqnd->bknd", probs, do), v)
    dq = (call.scale * product("bnqk,bknd->bqnd", dz, heads(k, q))).astype(q.dtype)
    if kernel == "dquery" and not call.sums_bias:
        return (dq,)
    blocks = jnp.pad(dz.sum(0), ((0, 0), (0, 1), (0, 1)))[:, *pairs(kernel, call)]
    sums = jnp.zeros_like(table[0]).at[:, kinds].add(blocks)
    return (sums,) if kernel == "dbias" else (dq, sums)


def unfused(kernel, call, x, y, *table):
    keys, visible = call.spec.neighborhood.neighbor_table()
    window = (..., jnp.arange(len(keys))[:, None], keys)
    if kernel == "qk":
        return (logits(kernel, call, x, y, table)[window].swapaxes(1, 2).astype(x.dtype),)
    weights = jnp.where(visible[None, :, None], x, 0).swapaxes(1, 2)
    dense = jnp.zeros((*weights.shape[:3], len(keys)), x.dtype).at[window].add(weights)
    if kernel == "av":
        return ((call.scale * product("bnqk,bknd->bqnd", dense, heads(y, x))).astype(x.dtype),)
    out = call.scale * product("bnqk,bqnd->bknd", dense, y)
    return (to_keys(out, y[:, :, : max(1, y.shape[2] // call.groups)]),)
