"""The node daemon: logged in at a control server, it keeps tunnel, paths, routes and names as the network map says."""
