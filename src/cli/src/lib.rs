//! The lamagrid command.
