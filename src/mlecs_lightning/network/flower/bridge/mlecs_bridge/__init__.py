"""Hands bytes between Flower and the resident processes of mlecs_lightning.

Flower starts a process for each message, and in an environment of its own if need be, so nothing
here imports torch or mlecs_lightning.
"""
