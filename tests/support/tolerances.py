"""Bounds of all comparisons, in one place: by dtype, for values and for gradients.

An error is ``max|a - b| / max|b|`` (`goldens.error`). float16 and bfloat16 have no bounds: they
are compared with what a plain implementation in the same dtype achieves.
"""

VALUE = {"float32": 2e-6, "float64": 1e-13}
# Sums over the queries that see a key, or over all tokens for the bias, are longer.
GRADIENT = {"float32": 1e-5, "float64": 1e-13}
# The goldens' own inputs are exact in every dtype; see tests/golden/README.md.
GOLDEN_ABSOLUTE = {"float32": 2e-6, "float64": 1e-11}
