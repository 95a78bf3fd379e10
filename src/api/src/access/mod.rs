//! Decides who a request comes from, and refuses requests of pages of other sites.
//!
//! Does not: know routes. A route asks the [`Caller`] what it may do.

mod same_origin;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use axum::http::{HeaderMap, header};
use parking_lot::Mutex;

use lamagrid_config::Config;
use lamagrid_domain::Owner;

use crate::keys::{KeyLimits, KeyRole, LiveKey, LiveKeys, Token};
use crate::problem::{Fault, Problem};
use same_origin::SameOrigin;

const HEALTHZ: &str = "/healthz";

/// Who sends a request. Clones share one place among the owner's requests.
#[derive(Debug, Clone)]
pub(crate) struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    owner: Owner,
    key: Option<Arc<LiveKey>>,
    requests: Arc<Requests>,
}

impl Caller {
    /// The owner of the tasks that it submits.
    pub(crate) fn owner(&self) -> &Owner {
        &self.0.owner
    }

    fn role(&self) -> KeyRole {
        self.0.key.as_ref().map_or(KeyRole::Admin, |key| key.key.role)
    }

    /// Its limits; `None` for this host's user.
    pub(crate) fn limits(&self) -> Option<KeyLimits> {
        self.0.key.as_ref().map(|key| key.key.limits)
    }

    /// False once its key was revoked.
    pub(crate) fn is_valid(&self) -> bool {
        self.0.key.as_ref().is_none_or(|key| key.is_valid())
    }

    /// True if it may see and change the tasks of all owners.
    pub(crate) fn is_operator(&self) -> bool {
        self.role() >= KeyRole::Operator
    }

    /// True if it may fetch the pictures of all owners.
    pub(crate) fn is_admin(&self) -> bool {
        self.role() == KeyRole::Admin
    }

    /// Refuses a key of the role user.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn must_be_operator(&self) -> Result<(), Problem> {
        if self.is_operator() {
            return Ok(());
        }
        Err(Problem::new(Fault::Forbidden, "this needs an API key of the role operator or admin"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.requests.leave(&self.owner);
    }
}

/// Counts the requests of each key that are being answered.
#[derive(Debug)]
struct Requests {
    max_of_one: usize,
    open: Mutex<HashMap<Owner, usize>>,
}

impl Requests {
    fn enter(&self, owner: &Owner, max: usize) -> bool {
        let mut open = self.open.lock();
        let count = open.entry(owner.clone()).or_default();
        let fits = *count < max;
        *count += usize::from(fits);
        fits
    }

    fn leave(&self, owner: &Owner) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(owner) {
            *count -= 1;
            if *count == 0 {
                open.remove(owner);
            }
        }
    }
}

/// The rules of one server.
#[derive(Debug)]
pub(crate) struct Access {
    /// `None` if their database cannot be opened.
    keys: Option<LiveKeys>,
    /// The token of `http.token_file`.
    token: Option<String>,
    require_key: bool,
    is_loopback: bool,
    rules: SameOrigin,
    requests: Arc<Requests>,
}

impl Access {
    pub(crate) fn new(config: &Config, data_dir: &Path, token: Option<String>) -> Self {
        let keys = LiveKeys::open(data_dir)
            .inspect_err(|error| tracing::error!(%error, "no HTTP API: the API keys cannot be read"))
            .ok();
        let host = rustix::system::uname();
        let is_loopback = config.http.is_loopback();
        Self {
            keys,
            token,
            require_key: config.api.require_key || !is_loopback,
            is_loopback,
            rules: SameOrigin::new(&config.web.allowed_hosts, host.nodename().to_str().unwrap_or_default()),
            requests: Arc::new(Requests {
                // One key leaves half of the places to others.
                max_of_one: config.api.max_connections.div_ceil(2),
                open: Mutex::default(),
            }),
        }
    }

    /// Identifies the caller of the API.
    ///
    /// # Errors
    /// 401, 403, 421, 429 or 503.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Problem> {
        self.rules.check(headers)?;
        let Some(keys) = &self.keys else {
            return Err(Problem::new(Fault::Busy, "the API keys cannot be read; see the scheduler's log"));
        };
        let given = bearer(headers)?;
        let (owner, key, max) = match given {
            None if !self.require_key && self.token.is_none() => (Owner::local(), None, usize::MAX),
            None => return Err(unauthorized("send an API key as `Authorization: Bearer KEY`")),
            Some(text) if self.is_token(text) && !self.require_key => (Owner::local(), None, usize::MAX),
            Some(text) => {
                let key = Token::parse(text).and_then(|token| keys.check(&token));
                let key = key
                    .ok_or_else(|| unauthorized("the API key is unknown or was revoked; send a valid one"))?;
                key.take_request().map_err(|wait| {
                    let most = key.key.limits.requests_per_second.unwrap_or(0);
                    let text = format!("the API key allows {most} requests per second; send fewer");
                    Problem::new(Fault::TooManyRequests, text).retry(Some(wait))
                })?;
                (key.key.id.owner(), Some(key), self.requests.max_of_one)
            }
        };
        if !self.requests.enter(&owner, max) {
            let text =
                format!("{max} requests of the API key are being answered already; wait for some of them");
            return Err(Problem::new(Fault::TooManyRequests, text));
        }
        Ok(Caller(Arc::new(Inner { owner, key, requests: Arc::clone(&self.requests) })))
    }

    /// Whether a request may see metrics and health: with the token of `http.token_file`, or with the key of an operator.
    /// Without a token they are open on loopback, and `/healthz` everywhere.
    pub(crate) fn may_see(&self, path: &str, headers: &HeaderMap) -> bool {
        if self.token.is_none() && (self.is_loopback || path == HEALTHZ) {
            return true;
        }
        let Ok(Some(text)) = bearer(headers) else { return false };
        let key = || Token::parse(text).and_then(|token| self.keys.as_ref()?.check(&token));
        self.is_token(text) || key().is_some_and(|key| key.key.role >= KeyRole::Operator)
    }

    /// Compares the hashes, so that the time taken does not tell where the tokens differ.
    fn is_token(&self, given: &str) -> bool {
        let hash = |text: &str| lamagrid_protocol::hash(text.as_bytes());
        self.token.as_ref().is_some_and(|token| hash(token) == hash(given))
    }
}

/// The text behind `Bearer` in `Authorization`.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let words = value.to_str().ok().and_then(|text| text.split_once(' '));
            let given = words.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
            given.map(|(_, text)| Some(text.trim())).ok_or_else(|| {
                unauthorized("the header Authorization is not `Bearer KEY`; send an API key that way")
            })
        }
        (Some(_), Some(_)) => Err(unauthorized("the request has two Authorization headers; send one")),
    }
}

fn unauthorized(text: &str) -> Problem {
    Problem::new(Fault::Unauthorized, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyStore, NewKey};

    fn access(dir: &Path, set: &[(&str, &str)], token: Option<&str>) -> Access {
        let set: Vec<_> = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let file = dir.join("none.toml");
        std::fs::write(&file, "").unwrap();
        let config = Config::load(Some(&file), std::iter::empty(), &set).unwrap().config;
        Access::new(&config, dir, token.map(str::to_owned))
    }

    fn headers(authorization: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "127.0.0.1:8871".parse().unwrap());
        if let Some(text) = authorization {
            headers.insert(header::AUTHORIZATION, text.parse().unwrap());
        }
        headers
    }

    fn status(access: &Access, authorization: Option<&str>) -> u16 {
        access.caller(&headers(authorization)).map_or_else(|problem| problem.status(), |_| 200)
    }

    fn key(dir: &Path, role: KeyRole, limits: KeyLimits) -> String {
        let new = NewKey { name: format!("{role:?}"), role, limits };
        format!("Bearer {}", KeyStore::open(dir).unwrap().create(new).unwrap().token)
    }

    #[test]
    fn loopback_is_open_unless_a_key_or_token_is_required() {
        let dir = tempfile::tempdir().unwrap();
        let good = key(dir.path(), KeyRole::User, KeyLimits::default());
        let open = access(dir.path(), &[], None);
        let caller = open.caller(&headers(None)).unwrap();
        assert_eq!((caller.owner().as_str(), caller.is_admin()), (Owner::LOCAL, true));
        let caller = open.caller(&headers(Some(&good))).unwrap();
        assert!(caller.owner().as_str().starts_with("key:") && !caller.is_operator());
        for wrong in ["Bearer x", "Basic eDp5", "Bearer", &good[..good.len() - 1]] {
            assert_eq!(status(&open, Some(wrong)), 401, "{wrong}");
        }
        let closed = access(dir.path(), &[("api.require_key", "true")], None);
        assert_eq!((status(&closed, None), status(&closed, Some(&good))), (401, 200));
        let token = access(dir.path(), &[], Some("t"));
        assert_eq!(status(&token, None), 401);
        assert_eq!((status(&token, Some("Bearer t")), status(&token, Some(&good))), (200, 200));
    }

    #[test]
    fn beyond_loopback_only_healthz_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let (user, operator) = (
            key(dir.path(), KeyRole::User, KeyLimits::default()),
            key(dir.path(), KeyRole::Operator, KeyLimits::default()),
        );
        let far = [("http.listen", "0.0.0.0:1"), ("http.certificate", "/c"), ("http.key", "/k")];
        let access = access(dir.path(), &far, None);
        assert_eq!(status(&access, None), 401);
        assert!(access.may_see("/healthz", &headers(None)));
        for (path, given, wanted) in
            [("/metrics", None, false), ("/metrics", Some(&user), false), ("/readyz", Some(&operator), true)]
        {
            assert_eq!(access.may_see(path, &headers(given.map(String::as_str))), wanted, "{path} {given:?}");
        }
    }

    #[test]
    fn the_rate_and_the_open_requests_of_a_key_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let slow = key(
            dir.path(),
            KeyRole::User,
            KeyLimits { requests_per_second: Some(1), ..KeyLimits::default() },
        );
        let many = key(dir.path(), KeyRole::Admin, KeyLimits::default());
        let access = access(dir.path(), &[("api.max_connections", "4")], None);
        assert_eq!((status(&access, Some(&slow)), status(&access, Some(&slow))), (200, 429));
        let held: Vec<_> = (0..2).map(|_| access.caller(&headers(Some(&many))).unwrap()).collect();
        assert_eq!(status(&access, Some(&many)), 429);
        assert_eq!(status(&access, None), 200, "others are answered");
        drop(held);
        assert_eq!(status(&access, Some(&many)), 200);
    }
}
