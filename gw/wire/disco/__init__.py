"""Disco: how two nodes find a path. Sealed pings between their sockets, and a call for pings by the relay.

    datagram   6 "TS💬" | 32 sender's disco key | 24 nonce | box( u8 type | u8 version | body )

    A                                         relay                                          B
    │  ping to every endpoint of B that control told ─────────────────────────────────────▶  │   may die in B's firewall
    │  call-me-maybe: my endpoints ──────────▶ │ ──────────────────────────────────────────▶ │
    │  ◀──────────────────────────────────────────────────── ping to every endpoint of A      │   opens B's firewall
    │  pong, and a ping of our own to where that came from ────────────────────────────────▶ │
    │  ◀──────────────────────────────────────────────────────────────────────────────  pong │   direct, both ways

The box is keyed by the two disco keys, so that a pong proves who answered, and from where is in the datagram's header.

Ref: tailscale disco/disco.go
"""
