//! The time of an input.

/// When an input happened, on both clocks, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    /// Monotonic: leases, time-outs, back-off. Never stored.
    pub(crate) mono_ms: u64,
    /// Since the Unix epoch: deadlines and retention. Stored, clamped on load.
    pub(crate) wall_ms: u64,
}
