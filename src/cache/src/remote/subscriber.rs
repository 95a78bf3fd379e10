//! Passes Redis' messages about changes on to the subscribers of this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use lamagrid_process::Backoff;

use super::place::Place;
use crate::cache::Notice;
use crate::state::TaskState;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long subscribing may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The one subscription of a process. Dropping it ends it.
#[derive(Debug, Default)]
pub(super) struct Subscriber {
    is_started: AtomicBool,
    task: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Subscriber {
    /// Subscribes, unless that was done before.
    pub(super) fn start(&self, place: &Arc<Place>, notices: &broadcast::Sender<Notice>) {
        if !self.is_started.swap(true, Ordering::AcqRel) {
            *self.task.lock() = Some(tokio::spawn(listen(Arc::clone(place), notices.clone())));
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

async fn listen(place: Arc<Place>, notices: broadcast::Sender<Notice>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let subscribed = tokio::time::timeout(PATIENCE, async {
            let mut subscription = place.client().ok()?.get_async_pubsub().await.ok()?;
            subscription.subscribe(place.channel()).await.ok()?;
            Some(subscription)
        });
        if let Ok(Some(mut subscription)) = subscribed.await {
            backoff.reset();
            // Sending fails only without listeners.
            let _ = notices.send(Notice::Gap);
            let mut messages = subscription.on_message();
            while let Some(message) = messages.next().await {
                if let Some(state) = TaskState::decode(message.get_payload_bytes()) {
                    let _ = notices.send(Notice::Changed(Arc::new(state)));
                }
            }
            drop(messages);
            let _ = notices.send(Notice::Gap);
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}
