"""Image classification: what class an image is of."""
