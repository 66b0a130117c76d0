"""The kernels of the fused op: forward, and its gradients."""
