"""Where many images are embedded: on this machine, or on the nodes of a cluster."""
