//! Decisions. A policy reads the parts and changes nothing.

pub(crate) mod admission;
pub(crate) mod inputs;
pub(crate) mod lanes;
pub(crate) mod needs;
pub(crate) mod node_change;
pub(crate) mod placement;
pub(crate) mod queue_choice;
pub(crate) mod recall;
pub(crate) mod retry;
pub(crate) mod route_table;
pub(crate) mod routing;
