"""QUIC connections: aioquic's state machine, and a path past it for datagrams by the train. No I/O, no clock.

    link.py           Link: one connection as relay, client and peer use it: datagrams, control stream, timers, moves
    connection.py     aioquic's connection with our connection ids, the TLS exporter, one key exchange
    fastpath.py       DATAGRAM and ACK packets by `gw.native.quicpackets`, with aioquic's own books kept right
    shared.py         packet numbers that packet workers use, and what becomes of their packets
    protection.py     which AES-GCM seals and opens them
    patience.py       how long the other side may take nothing of what waits for it
    selftest.py       decides at start whether the fast path may be used
    congestion.py     the congestion controller: follows the delivery rate, not single losses
    gate.py           a server's newcomers: connections, Retry, other versions
    configuration.py  TLS: certificates, pins, suites
    tickets.py        resumption with 0-RTT, each ticket once

aioquic is imported here alone, and this package only where a QUIC connection is opened.

Ref: spec quic §1 to §7
"""
