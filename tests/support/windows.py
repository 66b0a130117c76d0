"""Windows of an axis as hypothesis draws them."""

import dataclasses

from hypothesis import strategies as st

from natjax.kernels.neighborhood import AxisWindow


@st.composite
def windows(draw, max_length=40, causal=None, stride=None, periodic=False):
    """Every kind of axis; periodic ones only where asked for, as they have no borders."""
    kernel_size = draw(st.integers(1, min(9, max_length)))
    dilation = draw(st.integers(1, min(4, max_length // kernel_size)))
    length = draw(st.integers(kernel_size * dilation, max_length))
    is_causal = draw(st.booleans()) if causal is None else causal
    if periodic is None:
        periodic = draw(st.booleans())
    if periodic:
        length, is_causal = max(1, length // dilation) * dilation, False
    return AxisWindow(
        length=length,
        kernel_size=kernel_size,
        stride=stride or draw(st.integers(1, kernel_size)),
        dilation=dilation,
        is_causal=is_causal,
        is_periodic=periodic,
    )


@st.composite
def parts(draw, **kinds):
    """A window, and parts of its tokens that are at hand."""
    axis = draw(windows(**kinds))

    def part():
        first = draw(st.integers(0, axis.length - 1))
        return first, draw(st.integers(first + 1, axis.length))

    return dataclasses.replace(axis, queries=part(), keys=part())


@st.composite
def frames(draw, **kinds):
    """A window with a part of its queries at hand, and at least the keys that these see."""
    axis = dataclasses.replace(draw(parts(**kinds)), keys=None)
    first, stop = axis.needed_keys
    if stop - first > axis.length or draw(st.booleans()):
        # All keys; on a circle, from any token on.
        start = draw(st.integers(-axis.length, axis.length)) if axis.is_periodic else 0
        return dataclasses.replace(axis, keys=(start, start + axis.length))
    low = 0 if not axis.is_periodic else first - (axis.length - (stop - first))
    first = draw(st.integers(low, first))
    high = axis.length if not axis.is_periodic else first + axis.length
    keys = first, draw(st.integers(stop, high))
    turns = draw(st.integers(-1, 1)) * axis.length if axis.is_periodic else 0
    return dataclasses.replace(axis, keys=(keys[0] + turns, keys[1] + turns))


def in_parts(window, parts):
    """An axis of which each of so many devices has a part of the queries, and the keys they see."""
    if parts == 1:
        return window
    tokens = window.length // parts
    origins = range(0, window.length, tokens)
    window = dataclasses.replace(window, queries=(0, tokens), origins=origins)
    return dataclasses.replace(window, keys=window.needed_keys)


@st.composite
def windows_in_parts(draw, max_kernel_size):
    """Axes that are whole, or cut into parts of which one is at hand."""
    kernel_size, dilation = draw(st.integers(1, max_kernel_size)), draw(st.integers(1, 4))
    parts = draw(st.sampled_from([1, 2, 3, 5]))
    kind = draw(st.sampled_from(["plain", "is_causal", "is_periodic"][: 3 if parts > 1 else 2]))
    tokens = -(-kernel_size * dilation // parts) + draw(st.integers(0, 40))
    if kind == "is_periodic":  # dilation divides such an axis
        tokens *= dilation
    window = AxisWindow(
        length=tokens * parts,
        kernel_size=kernel_size,
        stride=draw(st.integers(1, kernel_size)),
        dilation=dilation,
        is_causal=kind == "is_causal",
        is_periodic=kind == "is_periodic",
    )
    return in_parts(window, parts)
