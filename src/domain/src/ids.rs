//! Defines the 128-bit identifiers. A [`TaskId`] is public. The others are secrets: a [`LeaseToken`] is the fencing token of an
//! attempt; a [`SessionId`] and a [`BootId`] are known only to the scheduler and their own node.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The error for a text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("id {text:?} is not 32 hexadecimal digits")]
pub struct ParseIdError {
    text: String,
}

fn parse(text: &str) -> Result<[u8; 16], ParseIdError> {
    // The text is untrusted: keep only enough of it to recognize it.
    let wrong = || ParseIdError { text: text.chars().take(40).collect() };
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    u128::from_str_radix(text, 16).map(u128::to_be_bytes).map_err(|_| wrong())
}

struct IdBytes;

impl serde::de::Visitor<'_> for IdBytes {
    type Value = [u8; 16];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("16 bytes or 32 hexadecimal digits")
    }

    fn visit_bytes<E: serde::de::Error>(self, v: &[u8]) -> Result<Self::Value, E> {
        v.try_into().map_err(|_| E::invalid_length(v.len(), &self))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Self::Value, E> {
        parse(v).map_err(E::custom)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Wraps 16 bytes that the caller drew at random.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 16 bytes, in the order in which they are printed.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse(text).map(Self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    deserializer.deserialize_str(IdBytes).map(Self)
                } else {
                    deserializer.deserialize_bytes(IdBytes).map(Self)
                }
            }
        }
    };
}

id! {
    /// Identifies one task; chosen by the client that creates it. Knowing it grants no access: the task's owner decides that.
    TaskId
}
impl TaskId {
    /// Builds a client's id: the wall clock's milliseconds in 48 bits, then the last 80 bits of `random`.
    #[must_use]
    pub fn drawn_at(wall_ms: u64, random: [u8; 16]) -> Self {
        let mut bytes = random;
        bytes[..6].copy_from_slice(&wall_ms.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// When the id was drawn, in milliseconds since the Unix epoch by the clock of the host that drew it.
    #[must_use]
    pub fn drawn_wall_ms(&self) -> u64 {
        u64::from_be_bytes(self.0[..8].try_into().expect("8 of 16 bytes")) >> 16
    }
}

id! {
    /// The fencing token of one attempt: only its holder can finish the task.
    LeaseToken
}
id! {
    /// Identifies one session of a node: from a registration until it ends or a newer session replaces it.
    SessionId
}

id! {
    /// Identifies one process of a node; drawn at random when the process starts. A secret between the node
    /// and its scheduler: it proves that a reconnecting peer is the same process.
    BootId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_printed_and_parsed_back() {
        let id = TaskId::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_task_id_contains_the_time_it_was_drawn() {
        let id = TaskId::drawn_at(0x0123_4567_89ab, [0xff; 16]);
        assert_eq!(id.to_string(), "0123456789abffffffffffffffffffff");
        assert_eq!(id.drawn_wall_ms(), 0x0123_4567_89ab);
    }

    #[test]
    fn text_other_than_32_hex_digits_is_rejected() {
        for text in [
            "",
            "12",
            "+00102030405060708090a0b0c0d0eff",
            "g00102030405060708090a0b0c0d0eff",
            &"é".repeat(16),
        ] {
            assert!(text.parse::<TaskId>().is_err(), "{text:?}");
        }
    }
}
