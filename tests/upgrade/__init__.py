"""The newest commit that speaks the protocol's minor version before ours, mixed with this one."""
