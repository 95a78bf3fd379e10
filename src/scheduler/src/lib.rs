//! Decides which node works on which task, remembers it, and moves the bytes.
