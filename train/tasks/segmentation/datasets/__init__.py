"""Images with label maps: folders, what TFDS has prepared, and made-up scenes."""
