//! The rule for names of queues, models and nodes.

/// The rule, for error messages. Names appear in addresses, logs and metrics.
pub(crate) const NAME_RULE: &str =
    "a name: 1 to 64 letters, digits, `.`, `_` or `-`, a letter or digit first";

pub(crate) fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}
