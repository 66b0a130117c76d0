"""The run folder and its checkpoints, written whole and checked when they are read."""
