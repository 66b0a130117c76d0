"""The kernels of the unfused ops: logits of window slots, weighted sums, and the gradients."""
