"""natjax modules inside Flax Linen, through Flax's bridge.

A Linen module that mixes its own layers with a natjax attention module and a whole natjax backbone:

    python examples/linen.py
"""

import jax
import jax.numpy as jnp
from flax import linen, nnx

import natjax


class Segmenter(linen.Module):
    """Per-pixel classes from the first map of a backbone, at a quarter of the resolution."""

    classes: int

    @linen.compact
    def __call__(self, images):
        """Logits; in training pass ``rngs=nnx.Rngs(dropout=self.make_rng("dropout"))`` on."""
        # to_linen takes what makes an NNX module (a class or a function) and its arguments, less
        # rngs, which Linen provides.
        backbone = nnx.bridge.to_linen(
            natjax.create_model, "nat_micro", num_classes=0, name="backbone"
        )
        x = backbone(images, nnx_method=natjax.NAT.features)[0]
        attention = nnx.bridge.to_linen(
            natjax.NeighborhoodAttention2D, 32, num_heads=2, kernel_size=5, name="attention"
        )
        x = x + attention(linen.LayerNorm()(x))
        return linen.Dense(self.classes)(x)


def main():
    """Make it, run it, differentiate it; returns the shape of the logits."""
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    model = Segmenter(classes=5)
    variables = jax.jit(model.init)(jax.random.key(1), images)

    def loss(variables):
        logits = model.apply(variables, images)
        return jnp.mean(logits**2), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, logits), gradients = step(variables)
    parameters = sum(x.size for x in jax.tree.leaves(variables["params"]))
    norm = sum(float(jnp.vdot(x, x)) for x in jax.tree.leaves(gradients)) ** 0.5
    print(f"{parameters} parameters, logits {logits.shape}, loss {value:.3f}, gradient {norm:.3f}")
    return logits.shape


if __name__ == "__main__":
    main()
