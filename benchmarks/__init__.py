"""Benchmarks of the repository; not part of the installed package.

A regular package, since Opacus installs another one of this name, which would win over a folder
without this file.
"""
