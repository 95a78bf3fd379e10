//! What a task is: ids, states, transitions, failures, capabilities, routing need.
