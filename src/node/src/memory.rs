//! Measures the memory of this process.
//!
//! Does not: measure a GPU's memory.

use std::fs;

/// Resident memory of this process, in bytes; 0 if the kernel does not tell.
#[must_use]
pub fn resident_bytes() -> u64 {
    status_bytes("VmRSS:")
}

/// Measures the highest resident memory from its creation on.
///
/// The kernel keeps the highest value of the process; it is reset at the start. Another thread's memory counts, too.
#[derive(Debug)]
pub struct PeakMeter(());

impl PeakMeter {
    /// Starts to measure.
    #[must_use]
    pub fn start() -> Self {
        // Refused by some sandboxes: the peak then is that of the whole life of the process.
        let _ = fs::write("/proc/self/clear_refs", "5");
        Self(())
    }

    /// The highest resident memory so far, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        status_bytes("VmHWM:")
    }
}

fn status_bytes(key: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_was_used_and_returned_is_seen_as_the_peak() {
        const LARGE: u64 = 64 << 20;
        let meter = PeakMeter::start();
        let before = resident_bytes();
        let block = std::hint::black_box(vec![1_u8; LARGE as usize]);
        assert!(resident_bytes() > before + LARGE / 2);
        drop(block);
        assert!(meter.bytes() > before + LARGE / 2);
        assert!(before > 0);
    }
}
