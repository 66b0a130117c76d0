"""Neighborhood attention ops and their implementations.

Start with `natjax.kernels.api` (what users call) and `natjax.kernels.neighborhood` (what a
neighborhood is). `natjax.kernels.backends.reference` is the definition of the ops; the other
implementations are its neighbors in ``backends``, named and chosen in `natjax.kernels.registry`,
and can be removed by deleting their folder. A backend of kernels brings kernels, what it supports
and its settings; ops made of them (`natjax.kernels.kernel_ops`) and their derivatives
(`natjax.kernels.autodiff`), blocks and tables (``plan``), batches and meshes (``sharding``) and
tuned settings (``tuning``) are there once for all of them.

Array dimensions, everywhere: ``B`` batch, ``*X`` token layout (``L`` | ``H W`` | ``T H W``), ``N``
query heads, ``M`` key/value heads, ``D`` head size, ``Dv`` value head size, ``K`` neighbors
(product of the window sizes), ``E`` additional keys, ``C`` channels.
"""
