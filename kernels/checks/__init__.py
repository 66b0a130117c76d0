"""Argument rules of the public ops, each checked once, here.

Every error names the argument, the rule and the value. The rules are NATTEN's, except that a
window of 1 along an axis is allowed, and those of what NATTEN has not.
"""

from natjax.kernels.checks.arrays import additional as additional
from natjax.kernels.checks.arrays import attention_scale as attention_scale
from natjax.kernels.checks.arrays import bias as bias
from natjax.kernels.checks.arrays import dropout as dropout
from natjax.kernels.checks.arrays import flat_keys as flat_keys
from natjax.kernels.checks.arrays import grouped_heads as grouped_heads
from natjax.kernels.checks.arrays import key_mask as key_mask
from natjax.kernels.checks.arrays import query_and_key as query_and_key
from natjax.kernels.checks.arrays import same_batch as same_batch
from natjax.kernels.checks.arrays import same_dtype as same_dtype
from natjax.kernels.checks.arrays import same_size as same_size
from natjax.kernels.checks.arrays import same_tokens as same_tokens
from natjax.kernels.checks.arrays import sinks as sinks
from natjax.kernels.checks.arrays import soft_cap as soft_cap
from natjax.kernels.checks.arrays import tokens as tokens
from natjax.kernels.checks.arrays import weights as weights
from natjax.kernels.checks.precision import Float32Products as Float32Products
from natjax.kernels.checks.precision import accumulation_dtype as accumulation_dtype
from natjax.kernels.checks.precision import float32_products as float32_products
from natjax.kernels.checks.precision import product_precision as product_precision
from natjax.kernels.checks.windows import axis_bools as axis_bools
from natjax.kernels.checks.windows import axis_ints as axis_ints
from natjax.kernels.checks.windows import neighborhood as neighborhood
