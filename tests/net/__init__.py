"""Several hosts, as network namespaces: joining, revoking, cut cables, wrong clocks, slow names."""
