"""The same run with every client on a device of its own: messages, roles, and Flower below them."""
