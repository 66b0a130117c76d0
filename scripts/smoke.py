"""What an installation with core dependencies only must do: run in an empty environment."""

import subprocess
import sys
import time

# The second start is the one that counts: the first compiles all modules.
for _ in range(2):
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import natjax"], check=True)
    seconds = time.monotonic() - began
if seconds > 1:
    sys.exit(f"import natjax took {seconds:.2f} s, more than 1 s")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

import natjax  # noqa: E402

query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 14, 14, 2, 16))
out = natjax.na2d(query, key, value, kernel_size=5)
reference = natjax.na2d(query, key, value, kernel_size=5, implementation="reference")
assert jnp.allclose(out, reference, atol=1e-5)
logits = natjax.create_model("nat_micro", rngs=nnx.Rngs(0))(jnp.zeros((1, 32, 32, 3)))
assert jnp.all(jnp.isfinite(logits))
listing = subprocess.run(
    [sys.executable, "-m", "natjax", "models", "nat_*"], check=True, capture_output=True, text=True
).stdout
assert "nat_tiny" in listing, listing
print(
    f"natjax {natjax.__version__} on Python {sys.version.split()[0]}: imported in {seconds:.2f} s"
)
