"""Lama Cleaner's models and plugins on a node give the pixels that they give in one process."""
