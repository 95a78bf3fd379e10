//! Returns freed memory to the system after connections have ended (decision 0016).

use std::time::Duration;

use tokio::time::Instant;

/// Delay after a connection has ended; connections that end during it share one trim.
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// The schedule of the next heap trim.
#[derive(Debug, Default)]
pub struct MemoryTrim(Option<Instant>);

impl MemoryTrim {
    /// Schedules a trim unless one is already scheduled.
    pub fn schedule(&mut self) {
        self.0.get_or_insert_with(|| Instant::now() + TRIM_AFTER);
    }

    /// Waits for the scheduled trim and starts it on a separate thread, since it may take several
    /// milliseconds. Waits forever if none is scheduled.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn due(&mut self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
        self.0 = None;
        tokio::task::spawn_blocking(trim);
    }
}

/// Returns free pages in the middle of the heap to the system. glibc itself returns only those at the end of
/// the heap, but the buffers that connections have freed lie between the small records of tasks.
fn trim() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "the allocator is C")]
    // SAFETY: malloc_trim touches no memory in use, and other threads may allocate meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}
