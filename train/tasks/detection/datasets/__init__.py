"""Images with objects: files in COCO's format, what TFDS has prepared, and made-up scenes."""
