//! The URL of a Redis server, which may hold a password: printing it leaves that out.

use std::fmt;

use serde::Deserialize;

/// The URL of a Redis server; empty for none.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// Completes the message "must be ...".
    pub(crate) const ALLOWED: &str = "\"\" or the URL of a Redis server, such as redis://127.0.0.1:6379/0, rediss://cache.example.com or \
         unix:///run/redis/redis.sock";
    const SCHEMES: [&str; 3] = ["redis://", "rediss://", "unix://"];

    /// Wraps a URL.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self(url.to_owned())
    }

    /// True if no server is configured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The URL with its password, to connect; never print it.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_well_formed(text: &str) -> bool {
        let rest = Self::SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme));
        rest.is_some_and(|rest| {
            !rest.is_empty() && !rest.contains(|c: char| c.is_whitespace() || c.is_control())
        })
    }
}

impl fmt::Display for RedisUrl {
    /// Writes the URL without what may be a password: the text before `@`, and the parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.0.split_once('?').map_or(self.0.as_str(), |(url, _)| url);
        match (url.split_once("://"), url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, place))) => write!(f, "{scheme}://***@{place}"),
            _ => f.write_str(url),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_printed() {
        for url in
            ["rediss://me:s@cret@host:1/2", "redis://:s@cret@host:1/2", "redis://host:1/2?password=cret"]
        {
            let shown = format!("{:?} {}", RedisUrl::new(url), RedisUrl::new(url));
            assert!(!shown.contains("cret") && shown.contains("host:1/2"), "{shown}");
        }
        assert_eq!(RedisUrl::new("unix:///run/r.sock").to_string(), "unix:///run/r.sock");
        assert_eq!(RedisUrl::new("").to_string(), "");
    }

    #[test]
    fn only_urls_of_redis_servers_are_well_formed() {
        for url in ["redis://127.0.0.1:6379/0", "rediss://a:b@h", "unix:///run/r.sock"] {
            assert!(RedisUrl::is_well_formed(url), "{url}");
        }
        for url in ["", "redis://", "http://h", "127.0.0.1:6379", "redis://h o"] {
            assert!(!RedisUrl::is_well_formed(url), "{url}");
        }
    }
}
