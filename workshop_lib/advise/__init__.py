"""`workshop advise`: statistics of a service in, and which statements a cache is worth out."""
