"""Evaluation of the models of all parties on held-out data."""
