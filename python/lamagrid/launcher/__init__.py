"""Starts the server of Lama Cleaner, and scheduler and nodes beside it."""
