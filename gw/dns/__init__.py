"""The mesh's DNS server: names of nodes from the control server's feed, everything else from upstreams."""
