"""The implementations of the ops; `natjax.kernels.registry` names them and chooses."""
