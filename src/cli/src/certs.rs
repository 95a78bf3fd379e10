//! `lamagrid certs`: creates, lists and revokes the certificates by which hosts identify each other.
//!
//! Does not: sign certificates; [`Certs`] does.

use std::path::{Path, PathBuf};

use serde::Serialize;

use lamagrid_domain::QueueName;
use lamagrid_gate::{
    Bundle, CertificateError, Certs, Issued, NewCertificate, Older, PeerRole, write_private,
};
use lamagrid_process::wall_clock::wall_ms;

use crate::Answer;
use crate::args::{BundleArgs, IssueArgs};
use crate::error::CliError;
use crate::output::{Format, Show, columns};
use crate::units;

/// A certificate is marked in the list if it ends within this time.
const SOON_MS: u64 = 30 * 86_400_000;

/// A certificate in the list.
#[derive(Serialize)]
struct Row {
    name: String,
    role: PeerRole,
    queues: Vec<QueueName>,
    until_wall_ms: u64,
    revoked: bool,
    /// BLAKE3 hashes of the valid certificates in DER, the newest last.
    fingerprints: Vec<String>,
}

struct List {
    rows: Vec<Row>,
    now_ms: u64,
}

impl Serialize for List {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.rows.serialize(serializer)
    }
}

impl Show for List {
    fn table(&self) -> String {
        let row = |row: &Row| {
            let queues = row.queues.iter().map(QueueName::as_str).collect::<Vec<_>>().join(", ");
            let state = match row.until_wall_ms.checked_sub(self.now_ms) {
                _ if row.revoked => "revoked",
                _ if row.fingerprints.is_empty() => "not let in: issue it again",
                None => "over",
                Some(left) if left < SOON_MS => "ends soon",
                Some(_) => "good",
            };
            let until = units::rfc3339(row.until_wall_ms)[..10].to_owned();
            let queues = if row.role == PeerRole::Node && queues.is_empty() { "all".into() } else { queues };
            vec![row.name.clone(), row.role.to_string(), queues, until, state.into()]
        };
        columns(&["NAME", "ROLE", "QUEUES", "UNTIL", "STATE"], self.rows.iter().map(row))
    }
}

/// Answer of a command that wrote a file.
#[derive(Serialize)]
struct Written {
    name: String,
    path: PathBuf,
    #[serde(skip)]
    text: String,
}

impl Show for Written {
    fn table(&self) -> String {
        self.text.clone()
    }
}

/// Runs the commands on the certificates of one data directory.
pub(crate) struct CertsCommand {
    certs: Certs,
    format: Format,
}

impl CertsCommand {
    pub(crate) fn new(data_dir: &Path, format: Format) -> Self {
        Self { certs: Certs::of(data_dir), format }
    }

    /// `lamagrid certs init`
    pub(crate) fn init(&self) -> Result<Answer, CliError> {
        self.certs.init()?;
        let text = format!(
            "made an authority and the scheduler's certificate in {}\nnext: lamagrid certs issue --role node --name gpu-1",
            self.certs.dir().display()
        );
        self.written("scheduler", self.certs.own(), text)
    }

    /// `lamagrid certs renew`
    pub(crate) fn renew(&self) -> Result<Answer, CliError> {
        self.certs.renew()?;
        let text =
            "made the scheduler's certificate anew: a running scheduler shows it within a second, and open \
                    connections go on"
                .to_owned();
        self.written("scheduler", self.certs.own(), text)
    }

    /// `lamagrid certs issue`
    pub(crate) fn issue(&self, args: &IssueArgs) -> Result<Answer, CliError> {
        let IssueArgs { role, name, queue, days, .. } = args;
        let new = NewCertificate { role: *role, name: name.clone(), queues: queue.clone(), days: *days };
        let ended = match self.certs.issue(&new)? {
            Older::Refused => {
                "\nthe older certificate may do what this one may not, so that it is refused from now on"
            }
            Older::StayValid => "",
        };
        let text = format!(
            "issued a certificate for the {role} {name}, for {days} days{ended}\nnext: lamagrid certs bundle {name} --scheduler HOST:PORT"
        );
        self.written(name, self.certs.of_holder(name), text)
    }

    /// `lamagrid certs list`
    pub(crate) fn list(&self) -> Result<Answer, CliError> {
        let row = |Issued { name, role, queues, until_wall_ms, revoked, fingerprints }| Row {
            name,
            role,
            queues,
            until_wall_ms,
            revoked,
            fingerprints: fingerprints.iter().map(ToString::to_string).collect(),
        };
        let rows = self.certs.all_issued()?.into_iter().map(row).collect();
        let list = List { rows, now_ms: wall_ms() };
        self.format.render(&list).map(Answer::ok)
    }

    /// `lamagrid certs revoke`
    pub(crate) fn revoke(&self, name: &str) -> Result<Answer, CliError> {
        self.certs.revoke(name)?;
        let text = format!("revoked {name}: a running scheduler closes its connections within a second");
        self.written(name, self.certs.dir().to_owned(), text)
    }

    /// `lamagrid certs bundle`
    pub(crate) fn bundle(&self, args: &BundleArgs) -> Result<Answer, CliError> {
        let (entry, pem) = self.certs.newest(&args.name)?;
        let until = &units::rfc3339(entry.until_wall_ms)[..10];
        let about = format!(
            "LamaGrid: the {} {}, until {until}. Its holder can act as that {}: keep it secret.",
            entry.role, entry.name, entry.role
        );
        let bundle = Bundle::text(&args.scheduler, &about, &pem);
        let to = args.out.clone().unwrap_or_else(|| format!("{}.bundle", args.name).into());
        write_private(&to, bundle.as_bytes()).map_err(CertificateError::from)?;
        let command = match entry.role {
            PeerRole::Node | PeerRole::Scheduler => "lamagrid-node --join",
            PeerRole::Client => "lama-cleaner-grid --grid-join",
            PeerRole::Admin => "lamagrid node list --join",
        };
        let shown = to.display();
        let text = format!("wrote {shown}, readable by you alone\nnext, on its host: {command} {shown}");
        self.written(&args.name, to, text)
    }

    fn written(&self, name: &str, path: PathBuf, text: String) -> Result<Answer, CliError> {
        self.format.render(&Written { name: name.to_owned(), path, text }).map(Answer::ok)
    }
}
