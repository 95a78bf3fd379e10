//! Submits, follows, cancels and waits for tasks: the client side of a scheduler.
//!
//! One actor per [`Client`] owns the connection. It pings, detects silence and reconnects with capped,
//! jittered back-off. After that it asks again for every task that a caller waits for, and sends blobs again
//! only if the scheduler does not know the task.
//!
//! Does not: start a runtime, retry refused requests, or retry failed tasks.
//! Called by: the Python module, the command line, the HTTP API and the benchmarks.
//!
//! Invariant: a task that [`Client::submit`] reported as accepted is followed until its outcome arrives or
//! the last clone of the client is dropped, across any number of connections.

mod actor;
mod admin;
mod client;
mod endpoint;
mod error;
mod options;
mod outcome;
mod pending_requests;
mod task;
mod task_watch;

pub use admin::admin;
pub use client::Client;
pub use endpoint::{Endpoint, EndpointError};
pub use error::ClientError;
pub use options::ClientOptions;
pub use outcome::{Outcome, ResultReader, TaskResult};
pub use task::{Content, Input, NewTask};
pub use task_watch::{TaskEvent, TaskWatch};

// Types that the functions above take and return, so that callers need not depend on the crates that define them.
pub use lamagrid_blobs::{StagedFile, StagedWriter, Staging};
pub use lamagrid_process::new_task_id;
pub use lamagrid_protocol::message::{
    AdminReply, AdminRequest, CancelTask, ChangeState, Cursor, DrainNode, GetNode, GetStatistics,
    GetTaskHistory, GridStatus, ListTasks, NodeChange, NodeDetail, NodeOrder, NodeStatus, Page, PauseQueue,
    Purge, QueueStatus, RefusedQueue, RemoveNode, RetryTask, SetNode, StatisticsLine, TaskHistory, TaskInfo,
    TaskLine, UndrainNode,
};
pub use lamagrid_transport::Endpoints;

/// The protocol version that this client speaks: major and minor.
pub const PROTOCOL: (u8, u8) = (lamagrid_protocol::frame::MAJOR, lamagrid_protocol::frame::MINOR);
