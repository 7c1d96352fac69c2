"""Turns files and inline values into tensors: decoders, shapes, standardisation."""
