"""Measurements of quality, speed and memory; each module says what it measures."""
