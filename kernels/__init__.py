"""Neighborhood attention ops and their implementations.

Start with `natjax.kernels.api` (what users call) and `natjax.kernels.window` (what a neighborhood
is). `natjax.kernels.reference` is the definition of the ops; every other implementation is one
file with the same three functions (``attention``, ``qk``, ``av``), chosen in
`natjax.kernels.dispatch`, and can be removed by deleting that file.

Array dimensions, everywhere: ``B`` batch, ``*X`` token layout (``L`` | ``H W`` | ``T H W``), ``N``
query heads, ``M`` key/value heads, ``D`` head size, ``Dv`` value head size, ``K`` neighbors
(product of the window sizes), ``E`` additional keys, ``C`` channels.
"""
