//! Matches paths against patterns: `*`, `?` and `[a-z]` within a name, `**` for any number of folders.

use std::path::{Component, Path, PathBuf};

/// A pattern, split into the folder in which the search begins and the names below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// The part before the first special character.
    pub(crate) root: PathBuf,
    parts: Vec<Vec<char>>,
}

impl Pattern {
    /// Reads a pattern; `None` if the path has no special character or is not UTF-8.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let mut root = PathBuf::new();
        let mut parts: Vec<Vec<char>> = Vec::new();
        for component in path.components() {
            let name = component.as_os_str().to_str()?;
            let is_special = matches!(component, Component::Normal(_)) && name.contains(['*', '?', '[']);
            if parts.is_empty() && !is_special {
                root.push(component);
            } else {
                parts.push(name.chars().collect());
            }
        }
        if root.as_os_str().is_empty() {
            root.push(".");
        }
        (!parts.is_empty()).then_some(Self { root, parts })
    }

    /// True if the path, relative to the root, matches.
    pub(crate) fn matches(&self, relative: &Path) -> bool {
        let names: Option<Vec<Vec<char>>> =
            relative.iter().map(|name| name.to_str().map(|name| name.chars().collect())).collect();
        names.is_some_and(|names| path_matches(&self.parts, &names))
    }

    /// How deep the search goes below the root; `None` if without a limit.
    pub(crate) fn depth(&self) -> Option<usize> {
        let is_deep = self.parts.iter().any(|part| **part == ['*', '*']);
        (!is_deep).then_some(self.parts.len())
    }
}

fn path_matches(parts: &[Vec<char>], names: &[Vec<char>]) -> bool {
    // For each number of names: whether the parts so far match them. Takes time proportional to the product.
    let mut matched = vec![false; names.len() + 1];
    matched[0] = true;
    for part in parts {
        let is_deep = **part == ['*', '*'];
        let mut next = vec![false; names.len() + 1];
        for at in 0..=names.len() {
            next[at] = if is_deep {
                matched[at] || (at > 0 && next[at - 1])
            } else {
                at > 0 && matched[at - 1] && name_matches(part, &names[at - 1])
            };
        }
        matched = next;
    }
    matched[names.len()]
}

fn name_matches(pattern: &[char], name: &[char]) -> bool {
    let (mut at, mut read) = (0, 0);
    // The last `*`, and the place in the name up to which it was tried.
    let mut star: Option<usize> = None;
    let mut tried = 0;
    while read < name.len() {
        let step = match pattern.get(at) {
            Some('*') => {
                (star, tried) = (Some(at), read);
                at += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => in_set(&pattern[at..], name[read]),
            Some(c) if *c == name[read] => Some(1),
            _ => None,
        };
        match (step, star) {
            (Some(len), _) => {
                at += len;
                read += 1;
            }
            (None, Some(place)) => {
                tried += 1;
                (at, read) = (place + 1, tried);
            }
            (None, None) => return false,
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

/// Length of the set such as `[a-z]` or `[!0-9]` at the begin of the pattern, if it holds the character.
fn in_set(pattern: &[char], c: char) -> Option<usize> {
    let end = pattern.iter().skip(2).position(|c| *c == ']').map(|at| at + 2);
    let Some(end) = end else { return (c == '[').then_some(1) }; // not closed: a plain bracket
    let is_negated = matches!(pattern[1], '!' | '^') && end > 2;
    let set = &pattern[1 + usize::from(is_negated)..end];
    let mut at = 0;
    let mut is_held = false;
    while at < set.len() {
        if at + 2 < set.len() && set[at + 1] == '-' {
            is_held |= (set[at]..=set[at + 2]).contains(&c);
            at += 3;
        } else {
            is_held |= set[at] == c;
            at += 1;
        }
    }
    (is_held != is_negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_begins_at_the_last_plain_folder() {
        let pattern = Pattern::of(Path::new("/a/b/*/c*.png")).unwrap();
        assert_eq!((pattern.root.as_path(), pattern.depth()), (Path::new("/a/b"), Some(2)));
        let pattern = Pattern::of(Path::new("**/*.png")).unwrap();
        assert_eq!((pattern.root.as_path(), pattern.depth()), (Path::new("."), None));
        assert_eq!(Pattern::of(Path::new("/a/b.png")), None);
    }

    #[test]
    fn names_and_folders_match() {
        for (pattern, path, is_match) in [
            ("r/*.jpg", "x.jpg", true),
            ("r/*.jpg", "a/x.jpg", false),
            ("r/**/*.jpg", "x.jpg", true),
            ("r/**/*.jpg", "a/b/x.jpg", true),
            ("r/**/b/*.jpg", "a/b/x.jpg", true),
            ("r/**/b/*.jpg", "a/c/x.jpg", false),
            ("r/**", "a/b", true),
            ("r/a?c*d", "abcxxd", true),
            ("r/a?c*d", "abcxxde", false),
            ("r/img[0-9][!a].png", "img7b.png", true),
            ("r/img[0-9][!a].png", "img7a.png", false),
            ("r/img[0-9][!a].png", "imgxb.png", false),
            ("r/*[]]", "a]", true),
            ("r/[x", "[x", true),
            ("r/*a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            let found = Pattern::of(Path::new(pattern)).unwrap().matches(Path::new(path));
            assert_eq!(found, is_match, "{pattern} {path}");
        }
    }
}
