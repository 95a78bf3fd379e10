//! One file per source of inputs. A handler calls methods of the parts in `state`; it never touches their fields.

mod admin;
mod client;
mod dispatch;
mod node_control;
mod node_results;
#[cfg(any(test, feature = "sabotage"))]
mod planted;
mod tick;
mod upload;

pub(crate) use admin::{asked_by, refused};
