"""One exchange with a client: the server's half, the device's half, and the link between them."""
