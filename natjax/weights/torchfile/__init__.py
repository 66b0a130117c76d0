"""PyTorch's ``.pth`` files, zipped or not, read without PyTorch and without executing them.

`reader` puts together what `archive` (the zip file), `machine` (the pickle), `builders` (the names
in it) and `tensors` find; `writer` writes state dicts.
"""
