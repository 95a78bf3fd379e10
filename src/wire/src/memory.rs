//! Gives memory back to the system after connections ended: decision 0016.

use std::time::Duration;

use tokio::time::Instant;

/// How long after a connection ended, together with those that end meanwhile.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(1);

/// When memory is given back next.
#[derive(Debug, Default)]
pub(crate) struct GiveBack(Option<Instant>);

impl GiveBack {
    /// A connection ended.
    pub(crate) fn ended(&mut self) {
        self.0.get_or_insert_with(|| Instant::now() + GIVE_BACK_AFTER);
    }

    /// Waits until connections ended a while ago and gives their memory back, on a thread of its own: it may take some
    /// milliseconds. Waits for ever while no connection ends.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn due(&mut self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
        self.0 = None;
        tokio::task::spawn_blocking(trim);
    }
}

/// What peers sent and left is large, what is remembered of tasks small, and lies in between: of a heap glibc by itself
/// gives back only what is free at the end.
fn trim() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "the allocator is C")]
    // SAFETY: nothing that is in use is touched, and other threads may allocate meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}
