//! Which changes of a node's settings are sent to it.

use lamagrid_domain::{Failure, FailureKind};
use lamagrid_protocol::message::NodeChange;

/// Most models one node may offer.
pub(crate) const MAX_MODELS: usize = 256;
/// Most tasks one node may work on at once.
pub(crate) const MAX_SLOTS: u16 = 64;
/// As in the configuration.
const MAX_THREADS: u32 = 1_024;
const MAX_LABELS: usize = 32;
const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Checks what can be checked without the node.
///
/// # Errors
/// [`FailureKind::InvalidInput`] with the setting and its bounds.
pub(crate) fn check(change: &NodeChange) -> Result<(), Failure> {
    let refused = |text: String| Err(Failure::new(FailureKind::InvalidInput, text));
    if *change == NodeChange::default() {
        return refused(
            "there is nothing to change: name models, slots, threads, a log level or labels".to_owned(),
        );
    }
    if let Some(models) = change.models.as_ref().map(Vec::len)
        && !(1..=MAX_MODELS).contains(&models)
    {
        return refused(format!(
            "a node offers 1 to {MAX_MODELS} models, not {models}; to give it no tasks, drain it: lamagrid node drain"
        ));
    }
    if let Some(slots) = change.slots
        && !(1..=MAX_SLOTS).contains(&slots)
    {
        return refused(format!("a node has 1 to {MAX_SLOTS} slots, not {slots}"));
    }
    if let Some(threads) = change.threads
        && threads > MAX_THREADS
    {
        return refused(format!(
            "an inference uses 0 (torch chooses) to {MAX_THREADS} threads, not {threads}"
        ));
    }
    if let Some(level) = &change.log_level
        && !LOG_LEVELS.contains(&level.as_str())
    {
        return refused(format!("there is no log level {level}; there are {}", LOG_LEVELS.join(", ")));
    }
    if let Some(labels) = &change.labels
        && (labels.len() > MAX_LABELS || labels.iter().any(|label| label.as_str().trim().is_empty()))
    {
        return refused(format!("a node has at most {MAX_LABELS} labels, none of them empty"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_out_of_bounds_are_refused_with_the_bounds() {
        let none = NodeChange::default;
        for (change, words) in [
            (none(), "nothing to change"),
            (NodeChange { models: Some(Vec::new()), ..none() }, "1 to 256 models, not 0"),
            (NodeChange { slots: Some(0), ..none() }, "1 to 64 slots, not 0"),
            (NodeChange { slots: Some(65), ..none() }, "1 to 64 slots, not 65"),
            (NodeChange { threads: Some(1_025), ..none() }, "to 1024 threads, not 1025"),
            (
                NodeChange { log_level: Some("loud".into()), ..none() },
                "no log level loud; there are error, warn",
            ),
            (
                NodeChange { labels: Some(vec![" ".into()]), ..none() },
                "at most 32 labels, none of them empty",
            ),
            (NodeChange { labels: Some(vec!["a".into(); 33]), ..none() }, "at most 32 labels"),
        ] {
            let failure = check(&change).unwrap_err();
            assert!(failure.message.contains(words), "{failure}");
        }
        let all = NodeChange {
            models: Some(vec!["lama".parse().unwrap()]),
            slots: Some(64),
            threads: Some(0),
            log_level: Some("trace".into()),
            labels: Some(Vec::new()),
        };
        assert_eq!(check(&all), Ok(()));
    }
}
