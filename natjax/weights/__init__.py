"""Published weights: reading, downloading, renaming and writing them."""
