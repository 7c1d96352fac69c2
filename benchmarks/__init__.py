"""Measurements of quality, speed and memory; each module says what it measures.

A regular package, since Opacus installs another one of this name, which would win over a folder
without this file.
"""
