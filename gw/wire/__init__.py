"""Sans-I/O codecs and state machines, one package a protocol: bytes and time in, bytes and events out."""
