//! Defines bounded, printable names. An accepted name is safe in a log line, in a table and as part of a file name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The error for a text that is not a valid name of its kind.
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
    /// A queue's name, such as `gpu` or `cpu`: a stream of tasks that need the same kind of device.
    QueueName, "queue", max 32, extra "-_"
}
name! {
    /// A model's name, as users give it: `lama`, `cv2`, `sd1.5`, or one from the configuration.
    ModelName, "model", max 96, extra "-_./"
}
name! {
    /// A node's name, as shown to users. Unique among the live sessions of one scheduler.
    NodeName, "node", max 64, extra "-_.:"
}
name! {
    /// The user that submitted a task, and who may therefore see and cancel it.
    Owner, "owner", max 128, extra "-_.:@/"
}
name! {
    /// The end user on whose behalf a task was submitted; fair shares and per-client limits apply to it. A web server puts each
    /// browser's address here. All submissions of one owner that leave it out count as one client.
    ClientName, "client", max 128, extra "-_.:@/%"
}

impl QueueName {
    /// The queue of neural networks, which prefer a GPU and run on a CPU if a node offers that.
    #[must_use]
    pub fn gpu() -> Self {
        Self("gpu".into())
    }

    /// The queue of work that a GPU does not speed up.
    #[must_use]
    pub fn cpu() -> Self {
        Self("cpu".into())
    }
}

impl Owner {
    /// The name of the owner of all tasks that arrive through the user's own sockets.
    pub const LOCAL: &str = "local";

    /// The owner named [`Owner::LOCAL`]. The socket directory admits a single user, so all programs of that
    /// user may see the same tasks. No certificate has this name.
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
