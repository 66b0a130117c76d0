"""Semantic segmentation: heads, whole segmentors, their loss and their inference."""
