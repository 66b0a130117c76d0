"""Making opaque functions of arrays good citizens of `jax.vmap` and of meshes of devices."""
