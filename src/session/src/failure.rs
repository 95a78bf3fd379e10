//! Builds failures that any part of a node can report.

use std::any::Any;

use lamagrid_domain::{Failure, FailureKind};

/// The failure of work that was stopped on request; it is not delivered.
#[must_use]
pub fn stopped() -> Failure {
    Failure::new(FailureKind::Cancelled, "stopped as told")
}

/// The failure of the component `what`, which panicked.
#[must_use]
pub fn panicked(what: &str, panic: &(dyn Any + Send)) -> Failure {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    Failure::new(FailureKind::Internal, format!("the node's {what} panicked, which is a defect: {said}"))
}
