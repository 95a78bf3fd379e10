//! Submit, wait, cancel, follow: the client's side of a scheduler, for programs that hand tasks over.
//!
//! One actor per [`Client`] owns the connection. It pings, notices silence, connects anew with capped and
//! jittered back-off, asks for every task again that somebody waits for, and sends blobs again only when the
//! scheduler says that it does not know the task.
//!
//! Does not: start a runtime, retry what the scheduler refused, or decide how a failed task goes on.
//! Called by: the Python module, the command line and the benchmarks.
//!
//! Invariant: a task that [`Client::submit`] reported as accepted is followed until its outcome came or the
//! last clone of the client is dropped, whatever happens to the connection.

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
pub use outcome::{Outcome, TaskResult};
pub use task::{Input, NewTask};
pub use task_watch::{TaskEvent, TaskWatch};

// What the functions above give and take, so that callers need not name the wire.
pub use lamagrid_process::new_task_id;
pub use lamagrid_protocol::message::{
    AdminReply, AdminRequest, CancelTask, Cursor, DrainNode, GetTaskHistory, GridStatus, ListTasks,
    NodeStatus, Page, PauseQueue, Purge, QueueStatus, RetryTask, TaskHistory, TaskInfo, TaskLine,
};
pub use lamagrid_transport::Endpoints;

/// The protocol that this client speaks, major and minor.
pub const PROTOCOL: (u8, u8) = (lamagrid_protocol::frame::MAJOR, lamagrid_protocol::frame::MINOR);
