"""Clients of one architecture that take every optimiser step together, in one batched pass."""
