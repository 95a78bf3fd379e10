//! How a child notices its parent's end: standard input is a pipe that only the parent holds open.

use std::io::{ErrorKind, Read};

/// Runs `on_end` once standard input reached its end, on a thread of its own.
///
/// The kernel closes the pipe however the parent ends, `kill -9` included.
///
/// # Errors
/// If the host gives no thread.
pub fn watch(on_end: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name("lifeline".into()).spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut heard = [0; 256];
        loop {
            match stdin.read(&mut heard) {
                Ok(0) => break,
                // Nothing is said on a lifeline; whatever comes is not ours to understand.
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        on_end();
    })?;
    Ok(())
}
