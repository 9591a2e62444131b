"""Writes the example data of the Norden Freight desk, byte for byte the same everywhere."""
