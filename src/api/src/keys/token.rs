//! The text that a program sends as its API key: `lg_ID_SECRET`.

use subtle::ConstantTimeEq;

use lamagrid_domain::Hash;
use lamagrid_process::random_bytes;

use super::key::{ID_DIGITS, KeyId};

const PREFIX: &str = "lg_";
/// Length of a secret, in bytes: 256 bits cannot be guessed, so that no slow hash is needed.
const SECRET_BYTES: usize = 32;

/// A token that was drawn or sent. Not printed by `Debug`.
pub(crate) struct Token {
    pub(crate) id: KeyId,
    secret: String,
}

impl Token {
    /// Draws a new one.
    pub(crate) fn draw() -> Self {
        let id = hex(&random_bytes::<{ ID_DIGITS / 2 }>());
        Self {
            id: KeyId::parse(&id).expect("hexadecimal digits"),
            secret: hex(&random_bytes::<SECRET_BYTES>()),
        }
    }

    /// Parses what a program sent; `None` if it is no token.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_at_checked(ID_DIGITS)?;
        let secret = secret.strip_prefix('_')?;
        let is_secret = secret.len() == 2 * SECRET_BYTES && secret.bytes().all(|b| b.is_ascii_hexdigit());
        is_secret.then_some(())?;
        Some(Self { id: KeyId::parse(id)?, secret: secret.to_owned() })
    }

    /// The text to hand out.
    pub(crate) fn text(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret)
    }

    /// The hash to store.
    pub(crate) fn hash(&self) -> Hash {
        lamagrid_protocol::hash(self.secret.as_bytes())
    }

    /// Whether the secret is the one of which `stored` is the hash. Takes the same time wherever they differ.
    pub(crate) fn is(&self, stored: &Hash) -> bool {
        self.hash().as_slice().ct_eq(stored.as_slice()).into()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_parsed_back_and_only_its_own_secret_fits() {
        let (token, other) = (Token::draw(), Token::draw());
        let parsed = Token::parse(&token.text()).unwrap();
        assert_eq!(parsed.id, token.id);
        assert!(parsed.is(&token.hash()) && !parsed.is(&other.hash()));
    }

    #[test]
    fn other_texts_are_no_tokens() {
        let good = Token::draw().text();
        for text in [
            "",
            "lg_",
            &good[1..],
            &good[..good.len() - 1],
            &format!("{good}0"),
            &good.replace("lg_", "LG_"),
            &good.replacen(&good[3..4], "é", 1),
            &format!("lg_{}", "_".repeat(81)),
        ] {
            assert!(Token::parse(text).is_none(), "{text}");
        }
    }
}
