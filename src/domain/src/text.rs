//! Cleans texts from other processes for display: bounded, and without terminal control characters.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A short text, such as the name of a device; the longest name of a GPU on the market is half as long.
pub type Label = Line<96>;
/// One or two sentences with a remedy. A peer that reads it as a [`Label`] keeps its beginning.
pub type Reason = Line<300>;

/// A text on one line, of at most `MAX_CHARS` characters. Text that does not fit is truncated and control characters are
/// replaced, instead of an error: a device with an unusual name still works.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Line<const MAX_CHARS: usize>(Box<str>);

impl<const MAX_CHARS: usize> Line<MAX_CHARS> {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX_CHARS: usize> From<&str> for Line<MAX_CHARS> {
    fn from(text: &str) -> Self {
        Self(printable(text, MAX_CHARS, LineFeeds::Replace).into())
    }
}

impl<const MAX_CHARS: usize> From<String> for Line<MAX_CHARS> {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl<const MAX_CHARS: usize> From<Line<MAX_CHARS>> for String {
    fn from(line: Line<MAX_CHARS>) -> Self {
        line.0.into()
    }
}

impl<const MAX_CHARS: usize> fmt::Display for Line<MAX_CHARS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<const MAX_CHARS: usize> fmt::Debug for Line<MAX_CHARS> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The treatment of line feeds and tabs in [`printable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFeeds {
    /// They stay.
    Keep,
    /// They are replaced like other control characters.
    Replace,
}

/// Returns the first `max_chars` characters of `text`; control characters, and those that change the writing
/// direction, are replaced by U+FFFD.
#[must_use]
pub fn printable(text: &str, max_chars: usize, line_feeds: LineFeeds) -> Cow<'_, str> {
    let end = text.char_indices().nth(max_chars).map_or(text.len(), |(at, _)| at);
    let text = &text[..end];
    let steers = |c: char| match c {
        '\n' | '\t' => line_feeds == LineFeeds::Replace,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        c => c.is_control(),
    };
    if text.contains(steers) { text.replace(steers, "\u{fffd}").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_truncated_and_free_of_control_characters() {
        assert_eq!(Label::from("NVIDIA H200").as_str(), "NVIDIA H200");
        assert_eq!(Label::from("é".repeat(65_100)).as_str().chars().count(), 96);
        assert_eq!(Reason::from("é".repeat(65_100)).as_str().chars().count(), 300);
        for steering in ["\x1b]0;owned\x07", "a\nb", "\u{9b}2J", "\u{202e}gpj", "\x7f", "a\tb", "\r"] {
            let label = Label::from(steering);
            assert!(label.as_str().contains('\u{fffd}'), "{steering:?}");
            assert!(!label.as_str().contains(char::is_control), "{steering:?}");
        }
    }

    #[test]
    fn line_feeds_and_tabs_are_kept_in_multi_line_texts() {
        assert_eq!(printable("one\n\ttwo", 100, LineFeeds::Keep), "one\n\ttwo");
        assert_eq!(printable("one\n\x1b[2Jtwo", 100, LineFeeds::Keep), "one\n\u{fffd}[2Jtwo");
        assert_eq!(printable("abc", 2, LineFeeds::Keep), "ab");
    }
}
