"""Data sets of labelled images, a module each."""
