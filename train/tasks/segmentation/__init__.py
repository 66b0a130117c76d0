"""The task of semantic segmentation: a class for every pixel."""
