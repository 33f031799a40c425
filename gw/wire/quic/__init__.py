"""GhostWire over QUIC: what stands on streams and in datagrams of `gw-relay/1` and `gw-peer/1`.

    stream 0            control: u8 type | u32 length, big-endian | body   numbers of DERP where the meaning is DERP's
    DATAGRAM frames     u8 kind | …                                        WireGuard messages and disco, as they are

    client                                            relay
      │  QUIC handshake, ALPN gw-relay/1                │
      │ ◀─────────────────────────────────────────────▶ │
      │  AUTH: node key, box over the TLS exporter      │   the relay's key from the relay map: with the Finished
      │ ──────────────────────────────────────────────▶ │
      │  HELLO, AUTH_OK: box over the same, limits      │
      │ ◀────────────────────────────────────────────── │
      │  datagrams by key                               │
      │ ◀─────────────────────────────────────────────▶ │

`auth` binds node keys to the TLS session, `frames` are the control frames, `datagrams` the packets, `demux` tells the
protocols of one UDP port apart. The engine below (aioquic, the batched path) is `gw.quic`.

Ref: spec quic §8 to §10, §13; RFC 9000, RFC 9221
"""
