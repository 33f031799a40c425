"""Thousands of simulated control clients, light enough to stand beside the server they load.

    fleet     the parent: starts processes, gives commands, gathers times
    swarm     one process: an epoll loop over up to 18,000 clients
    client    one client: Noise, just enough HTTP/2, zstd map frames
    servers   `gwctl serve` and Headscale as processes: state, keys, policy, CPU and memory

A client is what a stock client is to a server: it fetches `/key`, upgrades, registers with a pre-auth key, opens a map
stream, sends lite updates beside it, keeps what the stream tells, and comes back with jittered
backoff when it is cut off.
"""
