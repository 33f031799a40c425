"""ts2021, the control protocol's transport: a Noise IK session over an upgraded HTTP/1.1 connection, HTTP/2 inside.

    client                                                server
      │  POST /ts2021, X-Tailscale-Handshake: initiation    │     HTTP/1.1, plain or TLS
      │ ──────────────────────────────────────────────────▶ │
      │  101, response, [early payload], HTTP/2 SETTINGS    │     everything after the response is sealed records
      │ ◀────────────────────────────────────────────────── │
      │  HTTP/2: POST /machine/register, /machine/map       │

`noise` makes sessions, `client` and `server` run HTTP/2 over one, `mapframes` cuts the endless body of a map response.

Ref: tailscale control/controlbase, control/ts2021
"""
