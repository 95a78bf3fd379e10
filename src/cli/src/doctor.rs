//! `lamagrid doctor`: checks everything that can keep a host out of a grid, and reports each fault with its
//! remedy.
//!
//! Does not: change anything.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use lamagrid_config::{Config, find_sockets, libtorch, running_scheduler};
use lamagrid_domain::FailureKind;
use lamagrid_gate::{Bundle, Certs, Credentials, PeerRole, answering, probe};
use lamagrid_process::wall_clock::wall_ms;

use crate::Answer;
use crate::error::{CliError, REFUSED};
use crate::grid;
use crate::output::{Format, Show, columns};
use crate::units;

const DAY_MS: u64 = 86_400_000;
/// A certificate is reported if it ends within fewer days.
const SOON_DAYS: u64 = 30;
/// Difference between two clocks that is reported. A task's deadline is set by the client's clock and
/// enforced by the scheduler's.
const APART_MS: u64 = 10_000;
/// Free disk space below which the check fails; a host cannot keep even its logs for long.
const LOW_DISK_BYTES: u64 = 1 << 30;

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Good,
    /// Works now, but needs attention.
    Attention,
    Bad,
    /// Not configured on this host.
    Unused,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Attention => "attention",
            Self::Bad => "BAD",
            Self::Unused => "-",
        }
    }
}

/// One check with its result.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    what: String,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Findings(Vec<Finding>);

impl Show for Findings {
    fn table(&self) -> String {
        let row =
            |found: &Finding| vec![found.check.to_owned(), found.state.as_str().into(), found.what.clone()];
        columns(&["CHECK", "STATE", "WHAT"], self.0.iter().map(row))
    }
}

impl Findings {
    fn add(&mut self, check: &'static str, state: State, what: impl Into<String>) {
        self.0.push(Finding { check, state, what: what.into() });
    }
}

/// Checks this host: as the scheduler's or, with `join`, as the host of that bundle's holder.
pub(crate) fn examine(config: &Config, join: Option<&Path>, format: Format) -> Result<Answer, CliError> {
    let data_dir = config.data_dir()?;
    let mut found = Findings(Vec::new());
    disk(&mut found, &data_dir);
    match join {
        None => {
            spool(&mut found, config, &data_dir);
            let answers = scheduler(&mut found, config, &data_dir);
            gate(&mut found, config, &data_dir, answers);
            http(&mut found, config, &data_dir, answers);
        }
        Some(path) => bundle(&mut found, config, path)?,
    }
    torch(&mut found);
    let bad = found.0.iter().filter(|each| each.state == State::Bad).count();
    let code = if bad == 0 { 0 } else { REFUSED };
    Ok(Answer { text: format.render(&found)?, remark: None, code })
}

fn disk(found: &mut Findings, data_dir: &Path) {
    // The nearest existing directory; the scheduler's first start creates the rest.
    let existing = data_dir.ancestors().find(|dir| dir.is_dir()).unwrap_or_else(|| Path::new("/"));
    let place = data_dir.display();
    let free = match rustix::fs::statvfs(existing) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => return found.add("disk", State::Bad, format!("cannot look at {place}: {error}")),
    };
    if let Err(error) = rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        let text = format!("{place} cannot be written: {error}; choose another with --data-dir");
        return found.add("disk", State::Bad, text);
    }
    let text = format!("{place}: {} free", units::memory(free));
    match free {
        ..LOW_DISK_BYTES => {
            found.add("disk", State::Bad, format!("{text}, less than {}", units::memory(LOW_DISK_BYTES)));
        }
        _ => found.add("disk", State::Good, text),
    }
}

/// Checks whether the disk has room for `limits.max_spool_bytes`.
fn spool(found: &mut Findings, config: &Config, data_dir: &Path) {
    let Ok(stat) = rustix::fs::statvfs(data_dir) else { return };
    let (free, limit) = (stat.f_bavail.saturating_mul(stat.f_frsize), config.limits.max_spool_bytes);
    if free < limit {
        let (free, limit) = (units::memory(free), units::memory(limit));
        let text = format!("limits.max_spool_bytes allows {limit}, and {free} are free: lower it");
        found.add("spool", State::Attention, text);
    }
}

/// Checks whether this host's scheduler answers; true if it does.
fn scheduler(found: &mut Findings, config: &Config, data_dir: &Path) -> bool {
    let error = match grid::survey(config, None) {
        Ok(overview) => {
            let text = format!("answers, with {} nodes", overview.nodes.len());
            found.add("scheduler", State::Good, text);
            version(found, &overview.version);
            return true;
        }
        Err(error) => error,
    };
    let text = match (running_scheduler(data_dir), find_sockets(data_dir)) {
        (None, _) => error.text(),
        (Some(pid), Err(error)) => format!("it runs (pid {pid}), and is not used: {error}"),
        (Some(pid), Ok(sockets)) => {
            let missing = if sockets.join("client.sock").exists() { "" } else { ", which are gone" };
            format!(
                "it runs (pid {pid}), and does not answer by its sockets in {}{missing}: see scheduler.log among its \
                 logs; if it stays so, end it (kill {pid}) and start it again",
                sockets.display()
            )
        }
    };
    found.add("scheduler", State::Bad, text);
    false
}

fn version(found: &mut Findings, theirs: &str) {
    let ours = env!("CARGO_PKG_VERSION");
    if theirs == ours {
        found.add("version", State::Good, format!("{ours} here and on the scheduler"));
    } else {
        let text = format!("{ours} here, {theirs} on the scheduler: install the same on both soon");
        found.add("version", State::Attention, text);
    }
}

fn gate(found: &mut Findings, config: &Config, data_dir: &Path, scheduler_answers: bool) {
    if config.gate.listen.is_empty() {
        let text = "gate.listen is empty: no other host can join (lamagrid certs --help)";
        return found.add("gate", State::Unused, text);
    }
    let certs = Certs::of(data_dir);
    match std::fs::read(certs.own()) {
        Err(error) => {
            let text = format!("{}: {error}: run `lamagrid certs init`", certs.own().display());
            found.add("certificate", State::Bad, text);
        }
        Ok(pem) => match Credentials::from_pem(&pem).and_then(|own| own.validity()) {
            Ok(validity) => validity_of(found, "the scheduler's", validity, "lamagrid certs renew"),
            Err(error) => found.add("certificate", State::Bad, format!("{}: {error}", certs.own().display())),
        },
    }
    ledger(found, &certs);
    let listen = &config.gate.listen;
    let bound = TcpListener::bind(listen.as_str());
    match (bound, scheduler_answers) {
        // The running scheduler has the port.
        (Err(error), true) if error.kind() == std::io::ErrorKind::AddrInUse => {
            found.add("port", State::Good, format!("the scheduler listens on {listen}"));
        }
        (Err(error), _) => {
            let text =
                format!("cannot listen on {listen}: {error}; set gate.listen to another address or port");
            found.add("port", State::Bad, text);
        }
        (Ok(_), true) => {
            let text =
                format!("no process listens on {listen}: the scheduler was started without gate.listen");
            found.add("port", State::Bad, text);
        }
        (Ok(_), false) => found.add("port", State::Good, format!("{listen} is free for the scheduler")),
    }
}

/// Checks whether this scheduler answers health checks, and not another scheduler or program.
fn http(found: &mut Findings, config: &Config, data_dir: &Path, scheduler_answers: bool) {
    let listen = config.http.listen.as_str();
    if listen.is_empty() {
        return found.add("health", State::Unused, "http.listen is empty: no metrics and health checks");
    }
    if config.http.has_tls() {
        let text =
            format!("{listen} speaks HTTPS, which this command does not: ask it by its name with curl");
        return found.add("health", State::Unused, text);
    }
    let remedy = "set http.listen to another port";
    match (ask_health(listen, &config.http.token_file), scheduler_answers) {
        (Ok(answer), _) => match answer.lines().find_map(|line| line.strip_prefix("data directory: ")) {
            Some(other) if same_dir(Path::new(other), data_dir) => {
                found.add("health", State::Good, format!("the scheduler answers on {listen}"));
            }
            Some(other) => {
                let text = format!("the scheduler of {other} answers on {listen}, not this one's: {remedy}");
                found.add("health", State::Bad, text);
            }
            None => {
                let text = format!("another program answers on {listen}: {remedy}");
                found.add("health", State::Bad, text);
            }
        },
        (Err(error), false) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            found.add("health", State::Good, format!("{listen} is free for the scheduler"));
        }
        (Err(error), _) => {
            let text = format!(
                "{listen}: {error}: the scheduler was started with another http.listen, or another program had the address \
                 then; it is tried again every few seconds"
            );
            found.add("health", State::Attention, text);
        }
    }
}

/// Requests `/healthz` and returns the whole response, head included.
fn ask_health(listen: &str, token_file: &Path) -> std::io::Result<String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const MAX_BYTES: u64 = 16 << 10;
    let address = listen.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let token = std::fs::read_to_string(token_file).unwrap_or_default();
    let token = token.lines().next().unwrap_or_default().trim();
    let request = format!(
        "GET /healthz HTTP/1.1\r\nhost: {listen}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // A program that sends no response, or breaks it off, is not a scheduler; the text read so far shows
    // that.
    let _ = stream.take(MAX_BYTES).read_to_end(&mut answer);
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn same_dir(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

/// Checks whether the list of certificates can be read and is complete.
fn ledger(found: &mut Findings, certs: &Certs) {
    let issued = match certs.issued() {
        Ok(issued) => issued,
        Err(error) => return found.add("certificates", State::Bad, error.to_string()),
    };
    let unknown = issued.iter().filter(|each| !each.revoked && each.fingerprints.is_empty());
    let unknown: Vec<_> = unknown.map(|each| each.name.as_str()).collect();
    if unknown.is_empty() {
        let valid = issued.iter().filter(|each| !each.revoked).count();
        found.add("certificates", State::Good, format!("{valid} names are let in"));
    } else {
        let text =
            format!("the files of {} are gone, so they are not let in: issue them again", unknown.join(", "));
        found.add("certificates", State::Attention, text);
    }
}

fn validity_of(found: &mut Findings, whose: &str, (begins_ms, ends_ms): (u64, u64), remedy: &str) {
    let now_ms = wall_ms();
    let date = |ms: u64| units::rfc3339(ms)[..10].to_owned();
    let (begins, ends) = (date(begins_ms), date(ends_ms));
    if now_ms < begins_ms {
        let now = units::rfc3339(now_ms);
        let text = format!(
            "{whose} certificate is good from {begins} on, and the clock here says {now}: set it right"
        );
        found.add("clock", State::Bad, text);
    } else if now_ms >= ends_ms {
        let text = format!("{whose} certificate ended on {ends} (if the clock here is right): {remedy}");
        found.add("certificate", State::Bad, text);
    } else if (ends_ms - now_ms) / DAY_MS < SOON_DAYS {
        let text = format!("{whose} certificate ends soon, on {ends}: {remedy}");
        found.add("certificate", State::Attention, text);
    } else {
        found.add("certificate", State::Good, format!("{whose}, good until {ends}"));
    }
}

fn bundle(found: &mut Findings, config: &Config, path: &Path) -> Result<(), CliError> {
    let bundle = match Bundle::read(path, &[]) {
        Ok(bundle) => bundle,
        Err(error) => {
            found.add("bundle", State::Bad, error.to_string());
            return Ok(());
        }
    };
    let whose = format!("{}, for {}", bundle.certificate, bundle.scheduler);
    let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode());
    if mode & 0o077 == 0 {
        found.add("bundle", State::Good, whose);
    } else {
        let text = format!("{whose}; others may read it, and be this host: chmod 600 {}", path.display());
        found.add("bundle", State::Attention, text);
    }
    match bundle.credentials.validity() {
        Ok(validity) => {
            validity_of(found, "its", validity, "ask for a new bundle (lamagrid certs issue, bundle)");
        }
        Err(error) => found.add("certificate", State::Bad, error.to_string()),
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)?;
    match runtime.block_on(answering(&bundle.scheduler)) {
        Ok(address) => found.add("port", State::Good, format!("{address} answers")),
        Err(error) => {
            let text = format!(
                "{error}: does the scheduler run with gate.listen, and does a firewall let this through?"
            );
            found.add("port", State::Bad, text);
            return Ok(());
        }
    }
    match runtime.block_on(probe(&bundle)) {
        Ok(probed) => {
            found.add("gate", State::Good, "the scheduler lets this host in");
            clock(found, wall_ms(), probed.wall_ms);
            match probed.path {
                Some(Ok(())) => found.add("path", State::Good, "large packets get through, there and back"),
                Some(Err(error)) => found.add("path", State::Bad, error.to_string()),
                None => {
                    found.add("path", State::Attention, "not measured: the scheduler is of an older version")
                }
            }
        }
        Err(failure) if failure.kind == FailureKind::Incompatible => {
            found.add("version", State::Bad, failure.message);
        }
        Err(failure) => found.add("gate", State::Bad, failure.message),
    }
    if bundle.certificate.role != PeerRole::Node
        && let Ok(overview) = grid::survey(config, Some(path))
    {
        version(found, &overview.version);
    }
    Ok(())
}

/// Compares this host's clock with the scheduler's.
fn clock(found: &mut Findings, here_ms: u64, there_ms: u64) {
    let apart_ms = here_ms.abs_diff(there_ms);
    if apart_ms < APART_MS {
        return found.add("clock", State::Good, "agrees with the scheduler's");
    }
    let (apart, how) =
        (units::duration_ms(apart_ms as f64), if here_ms > there_ms { "ahead of" } else { "behind" });
    let text = format!(
        "{apart} {how} the scheduler's: deadlines of tasks and times in logs are off; set both right"
    );
    found.add("clock", State::Attention, text);
}

fn torch(found: &mut Findings) {
    let beside = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
    let env = |name: &str| std::env::var(name).ok();
    match libtorch::find(&beside.unwrap_or_default(), env) {
        Ok(torch) => {
            let version = torch.version.unwrap_or_else(|| "of an unknown version".to_owned());
            found.add("libtorch", State::Good, format!("{version} in {}", torch.dir.display()));
        }
        // Not an error: only Rust nodes need it, and they report it themselves.
        Err(error) => found.add("libtorch", State::Attention, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_differences_are_reported_with_their_amount() {
        let said = |here_ms, there_ms| {
            let mut found = Findings(Vec::new());
            clock(&mut found, here_ms, there_ms);
            (found.0[0].state, found.0[0].what.clone())
        };
        assert_eq!(said(1_000_000, 1_009_999).0, State::Good);
        assert_eq!(said(1_009_999, 1_000_000).0, State::Good);
        let (state, what) = said(1_000_000, 1_090_000);
        assert_eq!(state, State::Attention);
        assert!(what.starts_with("1 min 30 s behind the scheduler's"), "{what}");
        let (state, what) = said(1_010_000, 1_000_000);
        assert_eq!(state, State::Attention);
        assert!(what.starts_with("10.0 s ahead of the scheduler's"), "{what}");
    }
}
