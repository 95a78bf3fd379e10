//! Submit, wait, cancel, follow.
