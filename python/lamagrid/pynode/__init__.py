"""The Python node: Lama Cleaner's own models behind the grid, `lamagrid pynode`.

Does not: speak the protocol; ``_native.NodeSession`` does.
"""
