//! Bounded, printable names. A name that was accepted once is safe in a log line, a table and a file name's stem.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} must be 1 to {max} characters from a-z, A-Z, 0-9 and {extra:?}")]
pub struct NameError {
    what: &'static str,
    text: String,
    max: usize,
    extra: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, max $max:literal, extra $extra:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let fits = !text.is_empty()
                    && text.len() <= $max
                    && text.chars().all(|c| c.is_ascii_alphanumeric() || $extra.contains(c));
                if fits {
                    Ok(Self(text.into()))
                } else {
                    let text = text.chars().take($max).collect();
                    Err(NameError { what: $what, text, max: $max, extra: $extra })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}

name! {
    /// A queue: a stream of tasks of one resource class, such as `gpu` or `cpu`.
    QueueName, "queue", max 32, extra "-_"
}
name! {
    /// A model as people ask for it: `lama`, `cv2`, `sd1.5`, or a name from the configuration.
    ModelName, "model", max 96, extra "-_./"
}
name! {
    /// A node as people see it. Unique among the live sessions of one scheduler.
    NodeName, "node", max 64, extra "-_.:"
}
name! {
    /// Who submitted a task and so may see and cancel it.
    Owner, "owner", max 128, extra "-_.:@/"
}
name! {
    /// On whose behalf a task was submitted: shares are fair and limits hold between clients. A web server names each
    /// browser's address here; who does not say it is one client with everybody of the same owner.
    ClientName, "client", max 128, extra "-_.:@/%"
}

impl QueueName {
    /// The queue of neural networks, which want a GPU and run on a CPU where a node offers that.
    #[must_use]
    pub fn gpu() -> Self {
        Self("gpu".into())
    }

    /// The queue of work that no GPU makes faster.
    #[must_use]
    pub fn cpu() -> Self {
        Self("cpu".into())
    }
}

impl Owner {
    /// What the owner of everything that comes through the sockets of one's own user is called.
    pub const LOCAL: &str = "local";

    /// That owner: the socket directory admits one user only, so that all of that user's programs may see the same
    /// tasks. No certificate has its name.
    #[must_use]
    pub fn local() -> Self {
        Self::LOCAL.parse().expect("five letters are an owner")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_printable() {
        assert!("realisticVision1.4".parse::<ModelName>().is_ok());
        for text in ["", "a b", "../x\n", "é", &"x".repeat(97)] {
            assert!(text.parse::<ModelName>().is_err(), "{text:?}");
        }
        assert!("gpu/0".parse::<QueueName>().is_err());
    }
}
