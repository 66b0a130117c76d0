"""What `make tpu` runs; see `benchmarks.tpu.__main__`."""
