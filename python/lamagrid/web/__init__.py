"""The Flask side: Lama Cleaner's own server with its inpainting call sent through the grid.

Does not: load a model, or import torch or model code itself; the unchanged server imports them.
"""
