//! Lama Cleaner's pixel pipeline: HD strategy, pad, blend, cast.
