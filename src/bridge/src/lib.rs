//! The Python module lamagrid._native.
