//! Detects the end of the parent process: standard input is a pipe that only the parent holds open.

use std::io::{ErrorKind, Read};

/// Calls `on_end` when standard input ends. Reads on a detached thread, so that a blocked read never delays
/// the end of this process.
///
/// The kernel closes the pipe however the parent ends, `kill -9` included.
///
/// # Errors
/// If the host cannot start a thread.
pub(crate) fn watch(on_end: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name("parent-watch".into()).spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut ignored = [0; 256];
        loop {
            match stdin.read(&mut ignored) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        on_end();
    })?;
    Ok(())
}
