//! Refuses requests of browsers by host name and origin, by the rules of the web server (`lamagrid.web.same_origin`).
//!
//! A page of another site cannot use the API through its visitor's browser: its requests carry its own origin. DNS
//! rebinding, which points a site's own name to this server, fails because that name is not accepted.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, header};

use crate::problem::{Fault, Problem};

/// Suffixes that no public name server resolves: a web site cannot have such a name.
const PRIVATE_SUFFIXES: [&str; 5] = [".localhost", ".local", ".lan", ".internal", ".home.arpa"];
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Longest quotation of a header in an answer.
const SHOWN_CHARS: usize = 100;

/// The names under which the server answers.
#[derive(Debug)]
pub(crate) struct SameOrigin {
    any_host: bool,
    hosts: Vec<String>,
    suffixes: Vec<String>,
}

/// A host's name in lower case without brackets, and its port.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: String,
    port: Option<u16>,
}

impl SameOrigin {
    /// `allowed` are names, `*.NAME` and `*`, as in `web.allowed_hosts`; `own` is this host's name.
    pub(crate) fn new(allowed: &[String], own: &str) -> Self {
        let lower = |name: &str| name.to_ascii_lowercase();
        let mut suffixes: Vec<String> = PRIVATE_SUFFIXES.map(str::to_owned).into();
        suffixes.extend(allowed.iter().filter(|name| name.starts_with("*.")).map(|name| lower(&name[1..])));
        let names = allowed.iter().map(String::as_str).filter(|name| !name.starts_with('*')).chain([own]);
        let hosts = names.map(|name| lower(name.trim_end_matches('.'))).collect();
        Self { any_host: allowed.iter().any(|name| name == "*"), hosts, suffixes }
    }

    /// Refuses a request that a page of another site may have sent.
    ///
    /// # Errors
    /// 421 for a foreign host name, 403 for a foreign origin.
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let (host, second) = (hosts.next(), hosts.next());
        if second.is_some() {
            return Err(Problem::bad("the request has two Host headers; send one"));
        }
        let text = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
        let place = place(text);
        // An HTTP/1.0 client may leave it out; a browser never does.
        if host.is_some() && !place.as_ref().is_some_and(|place| self.is_own(&place.name)) {
            return Err(Problem::new(
                Fault::Misdirected,
                format!(
                    "this server does not answer by the name {}: use its IP address, or add the name to \
                     web.allowed_hosts in the scheduler's configuration",
                    shown(text)
                ),
            ));
        }
        let origin = headers.get(header::ORIGIN);
        let site = headers.get(FETCH_SITE).and_then(|site| site.to_str().ok());
        let is_foreign = match (origin, site) {
            (_, Some("same-origin" | "none")) => false,
            (None, None) => false,
            // No page has a reason to navigate here.
            (None, Some(_)) => true,
            (Some(origin), _) => {
                !place.is_some_and(|own| is_origin_of(origin.to_str().unwrap_or("null"), &own))
            }
        };
        if is_foreign {
            let origin = origin.and_then(|origin| origin.to_str().ok()).unwrap_or("unknown");
            return Err(Problem::new(
                Fault::Forbidden,
                format!(
                    "the request came from a page of another site ({}), which may not use the API",
                    shown(origin)
                ),
            ));
        }
        Ok(())
    }

    fn is_own(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.');
        self.any_host
            || self.hosts.iter().any(|own| own == name)
            // DNS rebinding needs a name.
            || name.parse::<IpAddr>().is_ok()
            // A name without a dot is one of this network: no site of the internet has such a name.
            || (!name.is_empty() && (!name.contains('.') || self.suffixes.iter().any(|end| name.ends_with(end.as_str()))))
    }
}

/// Splits a `Host` header; `None` if it is invalid.
fn place(host: &str) -> Option<Place> {
    let (name, rest) = match host.strip_prefix('[') {
        Some(inner) => {
            let (name, rest) = inner.split_once(']')?;
            name.parse::<std::net::Ipv6Addr>().ok()?;
            (name, rest)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_name = !name.is_empty() && !name.contains(['/', '@', '?', '#', '\\', ' ', '\t']);
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        Some("") => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        None | Some(_) => return None,
    };
    is_name.then(|| Place { name: name.to_ascii_lowercase(), port })
}

/// Whether an origin has this name and port. The schemes are not compared: a proxy may speak TLS for this server.
fn is_origin_of(origin: &str, own: &Place) -> bool {
    let Some((scheme, rest)) = origin.split_once("://") else { return false };
    let usual = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    place(rest).is_some_and(|origin| {
        origin.name == own.name && origin.port.unwrap_or(usual) == own.port.unwrap_or(usual)
    })
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(SHOWN_CHARS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(rules: &SameOrigin, head: &[(&str, &str)]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in head {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        rules.check(&headers).map_or_else(|problem| problem.status(), |()| 200)
    }

    #[test]
    fn only_own_names_are_answered() {
        let rules = SameOrigin::new(&["grid.example.com".into(), "*.corp.example".into()], "MyBox.site");
        for (host, wanted) in [
            ("127.0.0.1:8871", 200),
            ("[::1]:8871", 200),
            ("localhost", 200),
            ("mybox.site:1", 200),
            ("box.lan", 200),
            ("GRID.example.com.", 200),
            ("a.corp.example", 200),
            ("corp.example", 421),
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("[::1", 421),
            ("localhost:x", 421),
            ("user@localhost", 421),
            ("", 421),
        ] {
            assert_eq!(status(&rules, &[("host", host)]), wanted, "{host}");
        }
        assert_eq!(status(&rules, &[]), 200);
        assert_eq!(status(&rules, &[("host", "localhost"), ("host", "localhost")]), 400);
        let all = SameOrigin::new(&["*".into()], "h");
        assert_eq!(status(&all, &[("host", "evil.example")]), 200);
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let rules = SameOrigin::new(&[], "h");
        let own = ("host", "127.0.0.1:8871");
        let ask = |head: &[(&str, &str)]| status(&rules, &[&[own], head].concat());
        assert_eq!(ask(&[("origin", "http://127.0.0.1:8871")]), 200);
        for origin in [
            "https://evil.example",
            "http://127.0.0.1",
            "http://127.0.0.1:80",
            "null",
            "ftp://127.0.0.1:8871",
        ] {
            assert_eq!(ask(&[("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(ask(&[("sec-fetch-site", "cross-site")]), 403);
        assert_eq!(ask(&[("sec-fetch-site", "same-site")]), 403);
        assert_eq!(ask(&[("sec-fetch-site", "none")]), 200);
    }
}
