//! Gives fuzz targets access to private parts of the gate. Compiled only with `--cfg fuzzing`.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use lamagrid_protocol::preamble;

use crate::preamble::read_line;
use crate::zmtp_guard::{ACCEPTING, Breach, DIALLING, Guard, Handshake};

/// Parses `data` as a line and as an answer, and checks that a refusal is read back.
pub fn line(mut data: &[u8]) {
    let read = pin!(read_line(&mut data)).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(read) = read else { panic!("a slice is always ready") };
    let Ok(text) = read else { return };
    assert!(text.len() < preamble::MAX_LINE_BYTES);
    if let Err(refused) = preamble::parse(&text) {
        let answer = preamble::answer(Err(&refused));
        assert_eq!(answer.find('\n'), Some(answer.len() - 1), "one line");
        assert!(
            matches!(preamble::read_answer(answer.trim_end()), Some(Err(read)) if read.kind == refused.kind)
        );
    }
    let _ = preamble::read_answer(&text);
}

/// Feeds a handshake and following frames to the guard, whole and in pieces; the first byte sets the pieces' length.
pub fn zmtp(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else { return };
    for known in [DIALLING, ACCEPTING] {
        assert_eq!(speak(known, data, data.len()), speak(known, data, piece.into()), "pieces of {piece}");
    }
}

/// Returns the bytes that reach ZeroMQ, and the breach that ends the connection.
fn speak(known: &'static [&'static [u8]], data: &[u8], piece: usize) -> (Vec<u8>, Option<Breach>) {
    let mut handshake = Handshake::new(known, Bytes::from_static(b"fuzz"));
    let mut guard = None;
    let mut passed = Vec::new();
    for bytes in data.chunks(piece.max(1)) {
        let outcome = match &mut guard {
            None => handshake.push(bytes).map(|(greeting, rest)| {
                passed.extend_from_slice(&greeting);
                rest.map(|rest| {
                    guard = Some(Guard::default());
                    rest
                })
            }),
            Some(_) => Ok(Some(Bytes::copy_from_slice(bytes))),
        };
        let judged = outcome.and_then(|rest| match (&mut guard, rest) {
            (Some(guard), Some(rest)) => guard.pass(&rest).map(|()| passed.extend_from_slice(&rest)),
            _ => Ok(()),
        });
        if let Err(breach) = judged {
            // The number of bytes passed before the breach depends on the pieces.
            return (Vec::new(), Some(breach));
        }
    }
    (passed, None)
}
