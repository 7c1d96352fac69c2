"""Who is who: the server's certificate, and the key pairs of devices."""
