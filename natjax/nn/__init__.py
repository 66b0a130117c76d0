"""Modules and functions that models are made of."""
