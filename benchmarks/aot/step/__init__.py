"""The whole training step, compiled for machines that are not here."""
