"""Flower below the link: its programs, the server's transport, a device's node, and a shim."""
