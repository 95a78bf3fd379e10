"""Batches from the command line: folders in, folders out, and every way to be interrupted."""
