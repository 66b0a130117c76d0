"""Settings of kernels: where they come from, tables of them, and the search for the fastest."""
