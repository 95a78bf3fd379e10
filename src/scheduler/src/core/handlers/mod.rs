//! One file per source of inputs. A handler calls methods of the parts in `state`; it never touches their fields.

mod accept;
mod admin;
mod attempt_end;
mod client;
mod dispatch;
mod node_admin;
mod node_control;
mod node_orders;
mod node_results;
#[cfg(any(test, feature = "sabotage"))]
mod planted;
mod recovery;
mod route;
mod status;
mod task_end;
mod tick;
mod upload;
