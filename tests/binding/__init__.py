"""The Python API against a real scheduler and an echo node, in processes of their own."""
