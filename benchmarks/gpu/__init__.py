"""What `make gpu` runs; see `benchmarks.gpu.__main__`."""
