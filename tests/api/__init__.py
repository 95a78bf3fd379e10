"""The HTTP API, with a real scheduler and an echo node."""
