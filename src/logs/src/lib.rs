//! Log lines of every process: stderr and a rotated file.
