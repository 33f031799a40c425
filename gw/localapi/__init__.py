"""The local API of the daemons: HTTP/1.1 on a unix socket. Request and response structs, client, server."""
