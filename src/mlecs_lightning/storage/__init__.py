"""Atomic writing of files and folders, and checks of their content when they are read."""
