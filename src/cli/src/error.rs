//! Errors of commands, each with one text and one exit code.
//!
//! Does not: print.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use lamagrid_api::KeyError;
use lamagrid_client::{ClientError, EndpointError};
use lamagrid_config::ConfigError;
use lamagrid_domain::FailureKind;
use lamagrid_gate::CertificateError;
use lamagrid_logs::LogError;
use lamagrid_scheduler::SchedulerError;

/// Exit code of an invalid command line, as clap uses it.
pub(crate) const USAGE: u8 = 2;
/// Exit code of a refused request or an unknown task; the text tells them apart.
pub(crate) const REFUSED: u8 = 1;
/// Exit code of an invalid configuration: `EX_CONFIG` of sysexits.h, like the codes of failures.
const CONFIGURATION: u8 = 78;
/// Exit code of a defect in this program: `EX_SOFTWARE`.
const INTERNAL: u8 = 70;

/// Reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Scheduler(Box<SchedulerError>),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("--join asks the scheduler of another host, and `lamagrid {0}` is about this one: leave it out")]
    Join(&'static str),
    #[error("--data-dir names a scheduler of this host, --join one of another: leave one out")]
    TwoSchedulers,
    #[error("a file is given twice: `{}` and, with --config, `{}`; leave one out", file.display(), config.display())]
    TwoFiles { file: PathBuf, config: PathBuf },
    #[error(transparent)]
    Certificate(Box<CertificateError>),
    #[error(transparent)]
    Key(#[from] Box<KeyError>),
    #[error("cannot start the client's runtime; close some programs of this user and try again")]
    Runtime(#[source] io::Error),
    #[error("the answer cannot be written as JSON; please report this")]
    Json(#[from] serde_json::Error),
}

impl From<SchedulerError> for CliError {
    fn from(error: SchedulerError) -> Self {
        match error {
            SchedulerError::Config(error) => error.into(),
            other => Self::Scheduler(Box::new(other)),
        }
    }
}

impl From<CertificateError> for CliError {
    fn from(error: CertificateError) -> Self {
        Self::Certificate(Box::new(error))
    }
}

impl CliError {
    /// The exit code, as listed in `lamagrid --help`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(error) => configuration_code(error),
            Self::Log(LogError::Filter { .. }) => CONFIGURATION,
            Self::Log(LogError::ProcessName { .. } | LogError::AlreadySet { .. } | LogError::NotSetUp)
            | Self::Json(_) => INTERNAL,
            Self::Client(ClientError::Unknown { .. }) => REFUSED,
            Self::Client(error) => error.kind().exit_code(),
            Self::Scheduler(_) | Self::Certificate(_) | Self::Key(_) | Self::Runtime(_) => REFUSED,
            Self::Endpoint(_) => FailureKind::InvalidInput.exit_code(),
            Self::TwoFiles { .. } | Self::TwoSchedulers | Self::Join(_) => USAGE,
        }
    }

    /// Texts of the error and its sources, on one line.
    pub(crate) fn text(&self) -> String {
        let mut text = self.to_string();
        let mut next = self.source();
        while let Some(source) = next {
            let part = source.to_string();
            // Some errors already include the text of their source.
            if !text.contains(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            next = source.source();
        }
        crate::terminal_text::one_line(&text)
    }
}

fn configuration_code(error: &ConfigError) -> u8 {
    match error {
        // Caused by the state of the host, not by the configuration's text.
        ConfigError::PathTooLong { .. } | ConfigError::NotPrivate { .. } | ConfigError::Io { .. } => REFUSED,
        ConfigError::Internal { .. } => INTERNAL,
        ConfigError::Read { .. }
        | ConfigError::Syntax { .. }
        | ConfigError::UnknownKey { .. }
        | ConfigError::WrongType { .. }
        | ConfigError::OutOfRange { .. }
        | ConfigError::Conflict { .. }
        | ConfigError::Missing { .. }
        | ConfigError::NoHome { .. } => CONFIGURATION,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_other_tests_cannot_cause_have_codes_and_texts() {
        let long = || ConfigError::PathTooLong {
            path: "/run/x".into(),
            length: 60,
            limit: 47,
            variable: "XDG_RUNTIME_DIR",
        };
        let long_text = "the socket directory `/run/x` is 60 bytes long, at most 47 fit a socket's address; \
                         set XDG_RUNTIME_DIR to a shorter path";
        let home =
            ConfigError::NoHome { what: "the data directory", variable: "HOME", instead: "set `data_dir`" };
        let io = ConfigError::Io { act: "make", path: "/x".into(), source: io::Error::other("on\nfire") };
        let timeout = ClientError::Timeout {
            what: "the overview".into(),
            waited: std::time::Duration::from_millis(2_500),
            trouble: None,
        };
        for (error, code, text) in [
            (CliError::from(long()), 1, long_text),
            (CliError::from(SchedulerError::from(long())), 1, long_text),
            (
                home.into(),
                78,
                "cannot find the data directory: neither HOME nor HOME is an absolute path; set one of them, or set `data_dir`",
            ),
            (io.into(), 1, r"cannot make `/x`: on\nfire"),
            (timeout.into(), 75, "gave up waiting for the overview after 2.5 s; the scheduler is running"),
            (ClientError::Closed.into(), 70, "this client was shut down; make a new one"),
        ] {
            assert_eq!((error.exit_code(), error.text().as_str()), (code, text));
        }
    }
}
