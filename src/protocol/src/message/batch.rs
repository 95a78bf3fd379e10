//! Defines the messages about batches, on the channels `client` and `admin`.

use serde::{Deserialize, Serialize};

use lamagrid_domain::{BatchId, Label, Owner};

/// Limit on the batches of one [`Batches`], so that it fits into a message's header.
pub const BATCHES_PER_PAGE: usize = 100;

/// Tasks that one order changes at most, so that it does not delay others. An order that changed this many is repeated.
pub const TASKS_PER_ORDER: usize = 2_000;

/// An order about a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchAct {
    /// Changes nothing.
    Show,
    /// Creates it if it does not exist, and names it.
    Open {
        /// Its name, for people.
        name: Label,
    },
    /// No more tasks come: it is done once the last one has ended.
    Close,
    /// Cancels its unfinished tasks.
    Cancel,
    /// Submits its dead letters again.
    Retry,
}

bodies! {
    /// Changes or asks for a batch of the owner. The reply is its [`BatchStatus`]. Schedulers before protocol 1.6 do not
    /// know the message; see [`super::Pong`].
    ChangeBatch {
        /// Sequence number, repeated in the reply.
        seq: u64,
        /// The batch's id, drawn by the client that creates it.
        id: BatchId,
        /// The owner who asks.
        owner: Owner,
        /// The order.
        act: BatchAct,
    }
    /// A batch's status.
    BatchStatus {
        /// The request's sequence number.
        seq: u64,
        /// The batch.
        batch: BatchInfo,
        /// Number of tasks that the order changed, at most [`TASKS_PER_ORDER`].
        tasks: u64,
    }
    /// Lists batches of all owners, by their ids.
    ListBatches {
        /// The end of the previous page; `None` for the first page.
        after: Option<BatchId>,
        /// Limit on the batches of the page; the scheduler returns at most [`BATCHES_PER_PAGE`].
        limit: u32,
    }
    /// Changes or asks for a batch of any owner. The reply is [`BatchChanged`].
    ActOnBatch {
        /// The batch's id.
        id: BatchId,
        /// The order. Administrators open no batches: `Open` only names one.
        act: BatchAct,
    }
    /// One page of a list of batches.
    Batches {
        /// At most [`BATCHES_PER_PAGE`] batches.
        batches: Vec<BatchInfo>,
        /// The start of the next page; `None` on the last page.
        next: Option<BatchId>,
        /// Number of batches on all pages.
        total: u64,
    }
    /// A batch after an order.
    BatchChanged {
        /// The batch.
        batch: BatchInfo,
        /// Number of tasks that the order changed, at most [`TASKS_PER_ORDER`].
        tasks: u64,
    }
    /// A batch, with the number of its tasks in each state.
    BatchInfo {
        /// The batch's id.
        id: BatchId,
        /// The owner of its tasks.
        owner: Owner,
        /// Its name, for people.
        name: Label,
        /// Tasks that wait.
        queued: u64,
        /// Tasks on nodes.
        processing: u64,
        /// Tasks that completed.
        completed: u64,
        /// Tasks that failed and were not retried.
        failed: u64,
        /// Tasks that were cancelled.
        cancelled: u64,
        /// True if no more tasks come.
        closed: bool,
        /// Time of its creation, in milliseconds since the Unix epoch.
        created_wall_ms: u64,
        /// When it was closed and its last task had ended, in milliseconds since the Unix epoch.
        done_wall_ms: Option<u64>,
    }
}
