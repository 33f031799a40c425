"""DERP, the relay protocol: packets addressed by node key, over one upgraded HTTP connection.

    frame      u8 type | u32 length, big-endian | payload

    client                                         relay
      │  GET /derp, Upgrade: DERP                    │   [Derp-Fast-Start: 1 over TLS 1.3: no HTTP answer]
      │ ───────────────────────────────────────────▶ │
      │  101, ServerKey                              │
      │ ◀─────────────────────────────────────────── │
      │  ClientInfo (sealed), NotePreferred, packets │
      │ ───────────────────────────────────────────▶ │
      │  ServerInfo (sealed), packets                │
      │ ◀─────────────────────────────────────────── │

`frames` cuts and builds frames, `client` and `server` are the two ends. Unknown frame types are ignored by both.

Ref: tailscale derp/derp.go, derp/derp_client.go, derp/derpserver/derpserver.go
"""
