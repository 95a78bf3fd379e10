//! All keys with their types and ranges, and the rules between keys.
//!
//! Does not: hold defaults; those are in `default.toml`. A test checks that both name the same keys.

use crate::choice::{LogFormat, LogLevel, NeededDevice, RequiredDevice};
use crate::key::KeyPath;
use crate::signature::{Blend, Colour, MaskRange, MaskType, ValueRange};

/// Placeholder for the name of a queue or model in a path.
pub(crate) const NAME: &str = "*";

/// The type and range of a value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// An integer from `min` to `max`, both included.
    Integer { min: i64, max: i64 },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// See [`crate::Device`].
    Device,
    /// A path, which is made absolute; `""` stays empty.
    Path,
    /// A text that `holds` accepts; `allowed` completes the message "must be ...".
    Text { holds: fn(&str) -> bool, allowed: &'static str },
    /// true or false.
    Boolean,
    /// The arguments of a network; see [`crate::Argument`].
    Arguments,
    /// A name as for queues and models, or `""`.
    OptionalName,
    /// The name of a queue, or `""`.
    QueueName,
    /// A list of labels of nodes; may be empty.
    Labels,
    /// A list of at least one name.
    Names,
    /// A list of host names, `*.NAME` or `*`; may be empty.
    Hosts,
    /// A list of origins (`https://name:port`) or `*`; may be empty.
    Origins,
    /// A list of addresses and networks (`10.0.0.0/8`); may be empty.
    Networks,
    /// An address with a port, or `""`.
    Address,
}

impl Kind {
    /// The required type, for an error message after "must be".
    pub(crate) fn wanted(self) -> &'static str {
        match self {
            Self::Integer { .. } => "an integer",
            Self::Choice(_)
            | Self::Device
            | Self::OptionalName
            | Self::Text { .. }
            | Self::QueueName
            | Self::Address => "a string",
            Self::Boolean => "true or false",
            Self::Path => "a string with a path",
            Self::Names | Self::Labels | Self::Hosts | Self::Origins | Self::Networks | Self::Arguments => {
                "a list of strings"
            }
        }
    }
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) path: &'static [&'static str],
    pub(crate) kind: Kind,
    /// A valid value as TOML, for error messages.
    pub(crate) sample: &'static str,
    /// The default in a named section, as TOML; other defaults are in `default.toml`.
    pub(crate) default: &'static str,
}

impl Key {
    fn matches(&self, path: &[&str]) -> bool {
        self.path.len() == path.len() && self.begins_with(path)
    }

    fn begins_with(&self, path: &[&str]) -> bool {
        self.path.len() >= path.len()
            && self.path.iter().zip(path).all(|(known, given)| *known == NAME || known == given)
    }
}

/// The key at this path.
pub(crate) fn find(path: &[&str]) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.matches(path))
}

/// Whether keys lie below this path.
pub(crate) fn is_section(path: &[&str]) -> bool {
    KEYS.iter().any(|key| key.path.len() > path.len() && key.begins_with(path))
}

/// Less similar suggestions do not help; "lease" and "lease_ms" reach 0.62.
const LEAST_SIMILARITY: f64 = 0.55;

/// The known word most similar to an unknown one, if any is similar enough to suggest.
#[must_use]
pub fn most_similar<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let similarity = |word: &'a str| (word, strsim::normalized_damerau_levenshtein(word, unknown));
    let best = known.into_iter().map(similarity).max_by(|(_, one), (_, other)| one.total_cmp(other));
    best.filter(|(_, similarity)| *similarity >= LEAST_SIMILARITY).map(|(word, _)| word)
}

/// The key or section most similar to an unknown one, if any is similar enough to suggest.
pub(crate) fn nearest(unknown: &KeyPath) -> Option<String> {
    // The same key in another section ranks above a different key of the same section.
    const SAME_LEAF: f64 = 0.95;
    let given = unknown.segments();
    let name = if given.len() >= 3 { given[1] } else { "NAME" };
    let mut best: Option<(f64, KeyPath)> = None;
    for key in KEYS {
        // Compare with the key, and with its section at the depth of the unknown key.
        for length in [given.len().min(key.path.len()), key.path.len()] {
            let candidate: Vec<&str> =
                key.path[..length].iter().map(|part| if *part == NAME { name } else { part }).collect();
            let (leaf, parents) = (candidate[length - 1], &candidate[..length - 1]);
            let (given_leaf, given_parents) =
                (given[given.len() - 1], &given[..given.len().saturating_sub(1)]);
            let similarity = if parents == given_parents {
                strsim::normalized_damerau_levenshtein(leaf, given_leaf)
            } else if leaf == given_leaf && length == key.path.len() {
                SAME_LEAF
            } else {
                strsim::normalized_damerau_levenshtein(&candidate.join("."), &given.join("."))
            };
            if similarity >= LEAST_SIMILARITY && best.as_ref().is_none_or(|(most, _)| similarity > *most) {
                best = Some((similarity, KeyPath(candidate.iter().map(|&part| part.to_owned()).collect())));
            }
        }
    }
    best.map(|(_, path)| path.to_string())
}

const fn integer(path: &'static [&'static str], min: i64, max: i64, sample: &'static str) -> Key {
    Key { path, kind: Kind::Integer { min, max }, sample, default: sample }
}

const fn other(path: &'static [&'static str], kind: Kind, sample: &'static str) -> Key {
    Key { path, kind, sample, default: sample }
}

const fn with_default(
    path: &'static [&'static str],
    kind: Kind,
    sample: &'static str,
    default: &'static str,
) -> Key {
    Key { path, kind, sample, default }
}

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const YEAR_S: i64 = 365 * 24 * 3600;
/// No device has more memory; a larger requirement could never be met.
const MAX_MEMORY_GIB: i64 = 10 * 1024;
const REQUIRED_DEVICE: Kind = Kind::Choice(RequiredDevice::WORDS);

const URL: Kind = Kind::Text {
    holds: |text| {
        let has_scheme = ["https://", "http://", "file:///"].iter().any(|scheme| {
            text.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty() && !rest.ends_with('/'))
        });
        text.is_empty() || (has_scheme && !text.contains(|c: char| c.is_whitespace() || c.is_control()))
    },
    allowed: "\"\" or the URL of a file, such as https://example.com/my-lama.pt",
};
const SHA256: Kind = Kind::Text {
    holds: |text| text.is_empty() || (text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())),
    allowed: "\"\" or 64 hexadecimal digits, as sha256sum prints them",
};
const SHA256_SAMPLE: &str = "\"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"";
const MASK_RANGE: Kind = Kind::Text {
    holds: |text| text.parse::<MaskRange>().is_ok(),
    allowed: "two different numbers, outside the hole and in it, such as 0..1, 1..0 or 0.5..-0.5",
};

/// All keys. Upper bounds catch typing errors in digits or units, unless a comment gives another reason.
pub(crate) const KEYS: &[Key] = &[
    other(&["data_dir"], Kind::Path, "\"/var/lib/lamagrid\""),
    integer(&["scheduler", "lease_ms"], 100, HOUR_MS, "20000"),
    integer(&["scheduler", "suspect_after_ms"], 50, 600_000, "3000"),
    integer(&["scheduler", "poll_ms"], 10, 60_000, "1000"),
    integer(&["scheduler", "accept_timeout_ms"], 10, 60_000, "1000"),
    integer(&["scheduler", "closed_grace_ms"], 0, 600_000, "1500"),
    integer(&["scheduler", "no_node_wait_ms"], 0, DAY_MS, "30000"),
    integer(&["scheduler", "crash_limit"], 1, 100, "3"),
    integer(&["scheduler", "wait_limit_ms"], 0, YEAR_S * 1_000, "3600000"),
    integer(&["scheduler", "run_limit_ms"], 0, YEAR_S * 1_000, "3600000"),
    integer(&["scheduler", "ageing_ms"], 0, DAY_MS, "30000"),
    integer(&["scheduler", "warm_first_ms"], 0, HOUR_MS, "2000"),
    integer(&["scheduler", "set_aside_after"], 0, 1000, "3"),
    integer(&["scheduler", "probe_after_ms"], 1, HOUR_MS, "5000"),
    integer(&["scheduler", "result_retention_s"], 1, YEAR_S, "3600"),
    integer(&["scheduler", "dead_retention_s"], 1, YEAR_S, "604800"),
    integer(&["scheduler", "tombstone_retention_s"], 1, YEAR_S, "604800"),
    integer(&["scheduler", "max_outstanding_per_peer"], 1, 100_000, "1024"),
    integer(&["retry", "network", "failure_limit"], 1, 100, "3"),
    integer(&["retry", "network", "base_ms"], 1, 600_000, "500"),
    integer(&["retry", "network", "cap_ms"], 1, HOUR_MS, "10000"),
    integer(&["retry", "resource", "failure_limit"], 1, 100, "3"),
    integer(&["retry", "resource", "base_ms"], 1, 600_000, "1000"),
    integer(&["retry", "resource", "cap_ms"], 1, HOUR_MS, "30000"),
    integer(&["retry", "model", "failure_limit"], 1, 100, "2"),
    integer(&["retry", "model", "base_ms"], 1, 600_000, "500"),
    integer(&["retry", "model", "cap_ms"], 1, HOUR_MS, "10000"),
    integer(&["retry", "other", "failure_limit"], 1, 100, "2"),
    integer(&["retry", "other", "base_ms"], 1, 600_000, "500"),
    integer(&["retry", "other", "cap_ms"], 1, HOUR_MS, "10000"),
    integer(&["queues", NAME, "max_tasks"], 1, 10_000_000, "1000"),
    with_default(&["queues", NAME, "spill_to"], Kind::QueueName, "\"cpu\"", "\"\""),
    integer(&["queues", NAME, "spill_after_s"], 0, DAY_MS / 1_000, "60"),
    with_default(&["queues", NAME, "requires", "device"], REQUIRED_DEVICE, "\"gpu\"", "\"\""),
    integer(&["queues", NAME, "requires", "memory_gib"], 0, MAX_MEMORY_GIB, "0"),
    with_default(&["queues", NAME, "requires", "labels"], Kind::Labels, "[\"a100\"]", "[]"),
    // A message carries at most this much of an image inline; the store must not expect more.
    integer(&["store", "group_commit_max"], 1, 10_000, "256"),
    integer(&["store", "give_up_after_ms"], 100, 600_000, "10000"),
    other(&["node", "name"], Kind::OptionalName, "\"gpu-1\""),
    integer(&["node", "slots"], 1, 64, "1"),
    integer(&["node", "threads"], 0, 1024, "0"),
    integer(&["node", "cancel_grace_ms"], 0, 600_000, "2000"),
    integer(&["node", "cancel_restarts_per_minute"], 0, 60, "2"),
    other(&["node", "device"], Kind::Device, "\"auto\""),
    other(&["node", "models"], Kind::Names, "[\"lama\"]"),
    integer(&["node", "memory_mib"], 0, 16 * 1024 * 1024, "8192"),
    with_default(&["models", NAME, "path"], Kind::Path, "\"/srv/models/my-lama.pt\"", "\"\""),
    with_default(&["models", NAME, "url"], URL, "\"https://example.com/my-lama.pt\"", "\"\""),
    with_default(&["models", NAME, "sha256"], SHA256, SHA256_SAMPLE, "\"\""),
    with_default(&["models", NAME, "queue"], Kind::QueueName, "\"gpu\"", "\"\""),
    other(&["models", NAME, "pin"], Kind::Boolean, "false"),
    other(&["models", NAME, "inputs"], Kind::Arguments, "[\"image\", \"mask\"]"),
    other(&["models", NAME, "image_range"], Kind::Choice(ValueRange::WORDS), "\"0..1\""),
    other(&["models", NAME, "mask_range"], MASK_RANGE, "\"0..1\""),
    other(&["models", NAME, "mask_type"], Kind::Choice(MaskType::WORDS), "\"int64\""),
    other(&["models", NAME, "colour"], Kind::Choice(Colour::WORDS), "\"rgb\""),
    integer(&["models", NAME, "pad_modulo"], 1, 1024, "8"),
    integer(&["models", NAME, "fixed_size"], 0, 8192, "0"),
    other(&["models", NAME, "output_range"], Kind::Choice(ValueRange::WORDS), "\"0..1\""),
    other(&["models", NAME, "blend"], Kind::Choice(Blend::WORDS), "\"hole\""),
    other(&["models", NAME, "need", "device"], Kind::Choice(NeededDevice::WORDS), "\"auto\""),
    integer(&["models", NAME, "need", "memory_mib"], 0, MAX_MEMORY_GIB * 1024, "0"),
    integer(&["models", NAME, "need", "mib_per_megapixel"], 0, MAX_MEMORY_GIB * 1024, "0"),
    integer(&["models", NAME, "need", "cpu_up_to_megapixels"], 0, 1_000, "0"),
    other(&["client", "join"], Kind::Path, "\"/etc/lamagrid/web-1.bundle\""),
    integer(&["client", "timeout_ms"], 1, DAY_MS, "600000"),
    integer(&["client", "ping_ms"], 10, 60_000, "1000"),
    integer(&["client", "silence_ms"], 50, 600_000, "3000"),
    integer(&["limits", "max_pixels"], 1, 1_000_000_000, "100000000"),
    integer(&["limits", "max_spool_bytes"], 1, i64::MAX, "17179869184"),
    integer(&["limits", "min_free_bytes"], 0, i64::MAX, "536870912"),
    integer(&["limits", "max_client_tasks"], 1, 10_000_000, "500"),
    integer(&["limits", "max_client_bytes"], 1, i64::MAX, "4294967296"),
    integer(&["limits", "max_owner_tasks"], 1, 10_000_000, "10000"),
    integer(&["limits", "max_owner_bytes"], 1, i64::MAX, "12884901888"),
    integer(&["limits", "max_remote_priority"], -128, 127, "0"),
    other(&["http", "listen"], Kind::Address, "\"127.0.0.1:8871\""),
    other(&["http", "certificate"], Kind::Path, "\"/etc/lamagrid/http.pem\""),
    other(&["http", "key"], Kind::Path, "\"/etc/lamagrid/http.key\""),
    other(&["http", "token_file"], Kind::Path, "\"/etc/lamagrid/http-token\""),
    other(&["api", "require_key"], Kind::Boolean, "true"),
    integer(&["api", "max_connections"], 1, 100_000, "12000"),
    other(&["web", "allowed_hosts"], Kind::Hosts, "[\"pictures.example.com\"]"),
    other(&["web", "allowed_origins"], Kind::Origins, "[\"https://app.example.com\"]"),
    other(&["web", "trusted_proxies"], Kind::Networks, "[\"127.0.0.1\"]"),
    other(&["gate", "listen"], Kind::Address, "\"0.0.0.0:8872\""),
    integer(&["gate", "max_connections_per_peer"], 1, 8192, "256"),
    other(&["log", "level"], Kind::Choice(LogLevel::WORDS), "\"info\""),
    other(&["log", "format"], Kind::Choice(LogFormat::WORDS), "\"text\""),
    other(&["log", "dir"], Kind::Path, "\"/var/log/lamagrid\""),
    integer(&["log", "keep_files"], 1, 1000, "7"),
];

/// A key of an earlier version, accepted with a remark.
#[derive(Debug)]
pub(crate) struct OldKey {
    pub(crate) path: &'static [&'static str],
    /// Its present path; `None` if the key has no effect any more.
    pub(crate) now: Option<&'static [&'static str]>,
}

const OLD_KEYS: &[OldKey] = &[
    // The scheduler sets the interval at which nodes report; a node's own value was never read.
    OldKey { path: &["node", "poll_ms"], now: Some(&["scheduler", "poll_ms"]) },
    // The protocol fixes the size up to which clients send an image inline.
    OldKey { path: &["store", "inline_limit_bytes"], now: None },
];

/// The key of an earlier version at this path.
pub(crate) fn old(path: &[&str]) -> Option<&'static OldKey> {
    OLD_KEYS.iter().find(|old| old.path == path)
}

/// The required relation between two numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Relation {
    LessThan,
    AtMost,
}

impl Relation {
    pub(crate) fn holds(self, left: i64, right: i64) -> bool {
        match self {
            Self::LessThan => left < right,
            Self::AtMost => left <= right,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::LessThan => "less than",
            Self::AtMost => "at most",
        }
    }
}

/// Pairs of keys whose values depend on each other.
pub(crate) const RULES: &[(&str, Relation, &str)] = &[
    // A node must become suspect before its lease ends, or it is sent tasks that it cannot finish.
    ("scheduler.suspect_after_ms", Relation::LessThan, "scheduler.lease_ms"),
    ("scheduler.accept_timeout_ms", Relation::LessThan, "scheduler.lease_ms"),
    ("scheduler.closed_grace_ms", Relation::LessThan, "scheduler.lease_ms"),
    ("retry.network.base_ms", Relation::AtMost, "retry.network.cap_ms"),
    ("retry.resource.base_ms", Relation::AtMost, "retry.resource.cap_ms"),
    ("retry.model.base_ms", Relation::AtMost, "retry.model.cap_ms"),
    ("retry.other.base_ms", Relation::AtMost, "retry.other.cap_ms"),
    ("limits.max_client_bytes", Relation::AtMost, "limits.max_spool_bytes"),
    // An idle node must not count as silent between two polls.
    ("scheduler.poll_ms", Relation::LessThan, "scheduler.suspect_after_ms"),
    ("client.ping_ms", Relation::LessThan, "client.silence_ms"),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::key::is_named_section;

    /// Each key of `default.toml`, as a path with `*`, and the comment above it. Keys under a name
    /// that stand there once per name count once; the example of `[models.NAME]` counts too.
    fn documented() -> BTreeMap<Vec<String>, String> {
        let (mut keys, mut section, mut comment) = (BTreeMap::new(), Vec::new(), String::new());
        for line in crate::default_toml().lines() {
            let example = line.strip_prefix("#   ");
            let statement = example.unwrap_or(line);
            if let Some(header) = statement.strip_prefix('[') {
                section = header.trim_end_matches(']').split('.').map(str::to_owned).collect();
                if section.len() >= 2 && is_named_section(&section[0]) {
                    section[1] = NAME.to_owned();
                }
                comment.clear();
            } else if let Some((key, rest)) =
                statement.split_once(" = ").filter(|(key, _)| !key.contains(' '))
            {
                let mut path = section.clone();
                path.push(key.to_owned());
                let beside = rest.split_once('#').map_or("", |(_, text)| text);
                keys.insert(path, format!("{comment} {beside}"));
                comment.clear();
            } else if let Some(text) = line.strip_prefix("# ") {
                comment.push_str(text);
            } else {
                comment.clear();
            }
        }
        keys
    }

    #[test]
    fn the_default_and_the_schema_name_the_same_keys() {
        let known: BTreeSet<Vec<String>> =
            KEYS.iter().map(|key| key.path.iter().map(|&part| part.to_owned()).collect()).collect();
        assert_eq!(documented().into_keys().collect::<BTreeSet<_>>(), known);
    }

    #[test]
    fn every_key_has_a_comment_and_every_number_its_range() {
        for (path, comment) in documented() {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            assert!(comment.trim().len() > 7, "{path:?} has no comment");
            if let Some(Kind::Integer { min, max }) = find(&path).map(|key| key.kind) {
                let range = format!("{min} to {max}");
                assert!(comment.contains(&range), "{path:?}: {range} is not in: {comment}");
            }
        }
    }

    #[test]
    fn in_a_section_of_names_the_default_is_the_documented_one() {
        let text = crate::default_toml();
        assert_eq!(text.matches("max_tasks = 1000").count(), 2);
        assert_eq!(find(&["queues", "any", "max_tasks"]).unwrap().default, "1000");
        let in_example = |key: &&Key| {
            is_named_section(key.path[0]) && key.path.len() > 2 && key.path.last() != Some(&"max_tasks")
        };
        for key in KEYS.iter().filter(in_example) {
            let line = format!("\n#   {} = {} ", key.path[key.path.len() - 1], key.default);
            assert!(text.contains(&line), "{line}");
        }
    }

    #[test]
    fn the_nearest_key_is_found_in_and_across_sections() {
        let check = |unknown: &str, expected: Option<&str>| {
            assert_eq!(nearest(&KeyPath::parse(unknown)).as_deref(), expected, "{unknown}");
        };
        check("scheduler.lease_sm", Some("scheduler.lease_ms"));
        check("scheduler.lease", Some("scheduler.lease_ms"));
        check("shceduler", Some("scheduler"));
        check("shceduler.lease_ms", Some("scheduler.lease_ms"));
        check("slots", Some("node.slots"));
        check("node.max_pixels", Some("limits.max_pixels"));
        check("queues.gpu.max_task", Some("queues.gpu.max_tasks"));
        check("models.sd1.5.modulo", Some("models.\"sd1.5\".pad_modulo"));
        check("datadir", Some("data_dir"));
        check("node.hf_access_token", None);
        check("", None);
    }
}
