//! Bytes in JSON: text where they are text.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Bytes: as text if they are UTF-8, else in base64. Readers take both at any time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Bytes {
    /// UTF-8.
    Text {
        /// The bytes.
        text: String,
    },
    /// Anything.
    Base64 {
        /// The bytes (RFC 4648 §4, with padding).
        base64: String,
    },
}

impl Bytes {
    /// The bytes themselves; `None` if it is no base64.
    pub fn decode(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text { text } => Some(text.clone().into_bytes()),
            Self::Base64 { base64 } => BASE64_STANDARD.decode(base64).ok(),
        }
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text { text: text.to_owned() },
            Err(_) => Self::Base64 { base64: BASE64_STANDARD.encode(bytes) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_come_back() {
        for bytes in [&b""[..], b"text \xc3\xa9\n", b"\xff\x00", &[0xc3]] {
            let json = serde_json::to_string(&Bytes::from(bytes)).unwrap();
            let back: Bytes = serde_json::from_str(&json).unwrap();
            assert_eq!(back.decode().unwrap(), bytes, "{json}");
        }
        assert_eq!(Bytes::Base64 { base64: "?".to_owned() }.decode(), None);
    }
}
