//! Chooses the proxy for a URL from the environment variables that Python's urllib and curl read.
//!
//! Does not: connect. The result names the variable that it comes from, for error texts.
//!
//! Rules: the lower-case name wins, and an empty value in it cancels the upper-case one. `HTTP_PROXY` is
//! ignored in a CGI program, where a request header can set it. `all_proxy` applies if the variable of the
//! URL's scheme is not set, as in curl. `no_proxy` is interpreted as in urllib.
//!
//! Source: CPython 3.12 `urllib.request.getproxies_environment`, `proxy_bypass_environment`.

use reqwest::Url;

/// The proxy chosen for a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// The variable that names the proxy.
    pub(super) variable: String,
    /// The proxy's address, including user and password if given.
    pub(super) url: Url,
}

impl Chosen {
    /// The address without user and password, and the variable; for messages.
    pub(super) fn describe(&self) -> String {
        let mut shown = self.url.clone();
        // Both fail only for addresses without a host, which `parse` rejects.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        format!("the proxy {} of {}", shown.as_str().trim_end_matches('/'), self.variable)
    }
}

/// The value of a variable is not a proxy's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} names no proxy that can be used: write http://HOST:PORT, https:// or socks5://")]
pub(super) struct ProxyError {
    variable: String,
}

/// Chooses the proxy for `url`; `None` for a direct connection.
///
/// # Errors
/// [`ProxyError`] with the variable.
pub(super) fn choose(url: &Url, env: &impl Fn(&str) -> Option<String>) -> Result<Option<Chosen>, ProxyError> {
    let is_cgi = env("REQUEST_METHOD").is_some();
    let scheme = url.scheme();
    let own = set(scheme, env).filter(|(name, _)| !(is_cgi && name == "HTTP_PROXY"));
    let Some((variable, value)) = own.or_else(|| set("all", env)) else { return Ok(None) };
    if set("no", env).is_some_and(|(_, list)| is_direct(url, &list)) {
        return Ok(None);
    }
    match parse(&value) {
        Some(url) => Ok(Some(Chosen { variable, url })),
        None => Err(ProxyError { variable }),
    }
}

/// The name and value of the variable `<scheme>_proxy`, if it is set and not empty.
fn set(scheme: &str, env: &impl Fn(&str) -> Option<String>) -> Option<(String, String)> {
    let lower = format!("{scheme}_proxy");
    let upper = lower.to_ascii_uppercase();
    match env(&lower) {
        Some(value) => Some((lower, value)),
        None => env(&upper).map(|value| (upper, value)),
    }
    .map(|(name, value)| (name, value.trim().to_owned()))
    .filter(|(_, value)| !value.is_empty())
}

/// Parses a proxy address; without a scheme it is an HTTP proxy. Desktops write `socks://` for SOCKS 5. That
/// form lets the proxy resolve names, because a host that needs a proxy often cannot resolve them itself.
fn parse(value: &str) -> Option<Url> {
    let with_scheme = match value.split_once("://") {
        Some(("socks", rest)) => format!("socks5h://{rest}"),
        Some(_) => value.to_owned(),
        None => format!("http://{value}"),
    };
    let url = Url::parse(&with_scheme).ok()?;
    let known = matches!(url.scheme(), "http" | "https" | "socks4" | "socks4a" | "socks5" | "socks5h");
    (known && url.host_str().is_some_and(|host| !host.is_empty())).then_some(url)
}

/// True if a `no_proxy` list contains the host of `url`. The list is `*` for all hosts, or host names that
/// include their subdomains, each with or without a port and a leading dot.
fn is_direct(url: &Url, list: &str) -> bool {
    if list == "*" {
        return true;
    }
    let Some(host) = url.host_str().map(str::to_ascii_lowercase) else { return false };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}"));
    let forms = || [Some(host.as_str()), Some(bare), with_port.as_deref()].into_iter().flatten();
    list.split(',').map(|entry| entry.trim().trim_start_matches('.').to_ascii_lowercase()).any(|entry| {
        let below = format!(".{entry}");
        !entry.is_empty() && forms().any(|form| form == entry || form.ends_with(&below))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn chosen(url: &str, pairs: &[(&str, &str)]) -> Option<String> {
        let env: BTreeMap<_, _> = pairs.iter().copied().collect();
        let url = Url::parse(url).unwrap();
        let found = choose(&url, &|name: &str| env.get(name).map(|&value| value.to_owned())).unwrap();
        found.map(|chosen| format!("{} {}", chosen.variable, chosen.url.as_str().trim_end_matches('/')))
    }

    #[test]
    fn each_scheme_has_its_variable_and_all_proxy_is_for_the_others() {
        let desktop = [
            ("http_proxy", "http://p:3128/"),
            ("https_proxy", "http://p:3129/"),
            ("all_proxy", "socks://p:1080/"),
        ];
        assert_eq!(chosen("http://h/x", &desktop).unwrap(), "http_proxy http://p:3128");
        assert_eq!(chosen("https://h/x", &desktop).unwrap(), "https_proxy http://p:3129");
        assert_eq!(chosen("https://h/x", &desktop[2..]).unwrap(), "all_proxy socks5h://p:1080");
        assert_eq!(chosen("http://h/x", &desktop[1..2]), None);
        assert_eq!(chosen("https://h/x", &[("HTTPS_PROXY", "p:3128")]).unwrap(), "HTTPS_PROXY http://p:3128");
        assert_eq!(chosen("https://h/x", &[]), None);
    }

    #[test]
    fn lower_case_wins_and_http_proxy_is_ignored_in_a_cgi_program() {
        let both = [("http_proxy", "http://low:1"), ("HTTP_PROXY", "http://up:1")];
        assert_eq!(chosen("http://h/", &both).unwrap(), "http_proxy http://low:1");
        assert_eq!(chosen("http://h/", &[("http_proxy", ""), ("HTTP_PROXY", "http://up:1")]), None);
        let cgi = [("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "http://up:1")];
        assert_eq!(chosen("http://h/", &cgi), None);
        let lower = [("REQUEST_METHOD", "GET"), ("http_proxy", "http://low:1")];
        assert_eq!(chosen("http://h/", &lower).unwrap(), "http_proxy http://low:1");
        let secure = [("REQUEST_METHOD", "GET"), ("HTTPS_PROXY", "http://up:1")];
        assert!(chosen("https://h/", &secure).is_some());
    }

    #[test]
    fn no_proxy_is_read_as_urllib_reads_it() {
        let direct = |url: &str, list: &str| {
            chosen(url, &[("http_proxy", "http://p:1"), ("no_proxy", list)]).is_none()
        };
        for (url, list) in [
            ("http://h/", "*"),
            ("http://h/", "other, h"),
            ("http://H/", "h"),
            ("http://a.example.com/", "example.com"),
            ("http://a.example.com/", ".Example.com"),
            ("http://example.com/", ".example.com"),
            ("http://h:8080/", "h:8080"),
            ("http://h:8080/", "h"),
            ("http://a.h:8080/", "h:8080"),
            ("http://127.0.0.1:8080/", "127.0.0.1"),
            ("http://[::1]:8080/", "::1"),
            ("http://[::1]:8080/", "[::1]"),
        ] {
            assert!(direct(url, list), "{url} {list}");
        }
        for (url, list) in [
            ("http://h/", ""),
            ("http://h/", ", ,"),
            ("http://h/", "*,x"),
            ("http://notexample.com/", "example.com"),
            ("http://h:8080/", "h:80"),
            ("http://127.0.0.1/", "127.0.0.0/8"),
            ("http://a.example.com/", "*.example.com"),
        ] {
            assert!(!direct(url, list), "{url} {list}");
        }
        let upper = [("http_proxy", "http://p:1"), ("NO_PROXY", "h")];
        assert_eq!(chosen("http://h/", &upper), None);
        let cancelled = [("http_proxy", "http://p:1"), ("no_proxy", ""), ("NO_PROXY", "h")];
        assert!(chosen("http://h/", &cancelled).is_some());
    }

    #[test]
    fn an_invalid_proxy_is_reported_with_its_variable() {
        let url = Url::parse("https://h/").unwrap();
        for value in ["ftp://p:1", "http://", "http://p:none", "socks6://p"] {
            let error = choose(&url, &|name: &str| (name == "ALL_PROXY").then(|| value.to_owned()));
            assert!(error.unwrap_err().to_string().starts_with("ALL_PROXY names no proxy"), "{value}");
        }
        let secret = Chosen { variable: "x".into(), url: parse("socks://me:secret@p:1080").unwrap() };
        assert_eq!(secret.describe(), "the proxy socks5h://p:1080 of x");
    }
}
