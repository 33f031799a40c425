"""Frozen values that every room shares: keys, addresses, and the JSON of the control protocol. No I/O, no behaviour."""
