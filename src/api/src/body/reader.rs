//! Reads one body: not more than announced and allowed, and not slower than allowed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use lamagrid_domain::Owner;

use crate::problem::{Fault, Problem};

/// The times that a body may take.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// How long it may pause.
    pause: Duration,
    /// After this time, it must have come at [`MIN_BYTES_PER_S`].
    head_start: Duration,
}

const TIMES: Times = Times { pause: Duration::from_secs(10), head_start: Duration::from_secs(15) };
const MIN_BYTES_PER_S: f64 = 4_000.0;
/// Bodies that are read at the same time; each holds some hundred KiB of memory.
const BODIES: usize = 256;
/// All uploads that no task has taken over yet, in bytes, and those of one owner.
const MAX_BYTES: u64 = 4 << 30;
const MAX_BYTES_OF_ONE: u64 = MAX_BYTES / 2;

/// The room for bodies of all requests.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    bodies: Arc<Semaphore>,
    held: Arc<Mutex<HashMap<Owner, Held>>>,
}

/// The room that one owner's uploads take.
#[derive(Debug, Default, Clone, Copy)]
struct Held {
    bodies: usize,
    bytes: u64,
}

/// The part of the room that one request takes, until it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    room: Room,
    owner: Owner,
    bytes: u64,
    _body: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { bodies: Arc::new(Semaphore::new(BODIES)), held: Arc::default() }
    }

    /// Makes room for one more body.
    ///
    /// # Errors
    /// 503 if all places, or half of them by the same owner, are taken.
    pub(crate) fn enter(&self, owner: &Owner) -> Result<Share, Problem> {
        let body = Arc::clone(&self.bodies).try_acquire_owned().map_err(|_| busy())?;
        let mut held = self.held.lock();
        let of_owner = held.entry(owner.clone()).or_default();
        if of_owner.bodies >= BODIES / 2 {
            return Err(busy());
        }
        of_owner.bodies += 1;
        Ok(Share { room: self.clone(), owner: owner.clone(), bytes: 0, _body: body })
    }
}

impl Share {
    /// Counts bytes of the body.
    ///
    /// # Errors
    /// 503 if the uploads hold too much.
    fn take(&mut self, bytes: u64) -> Result<(), Problem> {
        let mut held = self.room.held.lock();
        let all: u64 = held.values().map(|held| held.bytes).sum();
        let of_owner = held.entry(self.owner.clone()).or_default();
        if all + bytes > MAX_BYTES || of_owner.bytes + bytes > MAX_BYTES_OF_ONE {
            return Err(busy());
        }
        of_owner.bytes += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.room.held.lock();
        if let Some(of_owner) = held.get_mut(&self.owner) {
            of_owner.bytes -= self.bytes;
            of_owner.bodies -= 1;
            if of_owner.bodies == 0 {
                held.remove(&self.owner);
            }
        }
    }
}

fn busy() -> Problem {
    Problem::new(Fault::Busy, "the server receives too many uploads at the moment; try again in some seconds")
}

/// The announced length of a body.
///
/// # Errors
/// 413 if it is above the limit.
pub(crate) fn announced(headers: &HeaderMap, limit: u64) -> Result<Option<u64>, Problem> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let length = length.and_then(|text| text.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    Ok(length)
}

fn too_large(limit: u64) -> Problem {
    let text = format!(
        "the body is too large: at most {limit} bytes are accepted here (they follow from limits.max_pixels and the \
         API key); send a smaller picture"
    );
    Problem::new(Fault::TooLarge, text)
}

/// The body of one request.
#[derive(Debug)]
pub(crate) struct BodyReader {
    stream: BodyDataStream,
    limit: u64,
    read: u64,
    began: Instant,
    times: Times,
    share: Share,
}

impl BodyReader {
    pub(crate) fn new(body: Body, limit: u64, share: Share) -> Self {
        Self { stream: body.into_data_stream(), limit, read: 0, began: Instant::now(), times: TIMES, share }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// 400 if it breaks off, 408 if it is too slow, 413 if it is too long, 503 if there is no room.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let slow =
            || Problem::new(Fault::BodyTimeout, "the body of the request came too slowly; send it again");
        let Ok(piece) = tokio::time::timeout(self.times.pause, self.stream.next()).await else {
            return Err(slow());
        };
        let Some(piece) = piece else { return Ok(None) };
        let bytes = piece
            .map_err(|_| Problem::bad("the body of the request is broken or ended early; send it again"))?;
        self.read += bytes.len() as u64;
        if self.read > self.limit {
            return Err(too_large(self.limit));
        }
        let late = self.began.elapsed().saturating_sub(self.times.head_start);
        if late.as_secs_f64() * MIN_BYTES_PER_S > self.read as f64 {
            return Err(slow());
        }
        self.share.take(bytes.len() as u64)?;
        Ok(Some(bytes))
    }

    /// Ends reading; the room is given back when the share is dropped.
    pub(crate) fn into_share(self) -> Share {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(body: Body, limit: u64) -> BodyReader {
        let mut reader = BodyReader::new(body, limit, Room::new().enter(&Owner::local()).unwrap());
        reader.times = Times { pause: Duration::from_millis(300), head_start: Duration::from_millis(200) };
        reader
    }

    #[tokio::test]
    async fn a_body_is_cut_off_at_its_limit_and_when_it_pauses() {
        let mut long = reader(Body::from(vec![0; 11]), 10);
        assert_eq!(long.next().await.unwrap_err().status(), 413);
        let silent = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        assert_eq!(reader(Body::from_stream(silent), 10).next().await.unwrap_err().status(), 408);
        let broken = futures_util::stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]);
        assert_eq!(reader(Body::from_stream(broken), 10).next().await.unwrap_err().status(), 400);
    }

    #[tokio::test]
    async fn a_trickling_body_is_ended() {
        let trickle = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let mut slow = reader(Body::from_stream(trickle), 1_000);
        let began = Instant::now();
        let status = loop {
            match slow.next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it never ends"),
                Err(problem) => break problem.status(),
            }
        };
        assert_eq!(status, 408);
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn one_owner_leaves_half_of_the_room() {
        let (room, other) = (Room::new(), "key:1".parse::<Owner>().unwrap());
        let mut shares: Vec<_> = (0..BODIES / 2).map(|_| room.enter(&other).unwrap()).collect();
        assert_eq!(room.enter(&other).unwrap_err().status(), 503);
        assert!(shares[0].take(MAX_BYTES_OF_ONE).is_ok());
        assert_eq!(shares[1].take(1).unwrap_err().status(), 503);
        let mut own = room.enter(&Owner::local()).unwrap();
        assert!(own.take(MAX_BYTES_OF_ONE).is_ok() && own.take(1).is_err());
        drop(shares);
        assert!(room.enter(&other).unwrap().take(1).is_ok());
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_anything_is_read() {
        let mut headers = HeaderMap::new();
        assert_eq!(announced(&headers, 10).unwrap(), None);
        headers.insert(header::CONTENT_LENGTH, "11".parse().unwrap());
        assert_eq!(announced(&headers, 11).unwrap(), Some(11));
        assert_eq!(announced(&headers, 10).unwrap_err().status(), 413);
    }
}
