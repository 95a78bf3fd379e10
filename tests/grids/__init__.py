"""Running grids for the suites: scheduler, nodes and the server, each in a process of its own."""
