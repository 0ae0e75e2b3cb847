//! Secrets that the guest never has: it holds a placeholder, which is replaced in the heads of requests to the
//! secret's own hosts, where TLS ends in the host.

use std::fmt;

use data_encoding::{BASE64, HEXLOWER};

use crate::domain::{DomainName, DomainPattern};
use crate::inspect::Refusal;

/// Where credentials stand unless the secret says otherwise.
const DEFAULT_HEADERS: &[&str] =
    &["authorization", "x-api-key", "api-key", "private-token", "x-auth-token"];
/// How a placeholder begins.
const PREFIX: &str = "cabana-secret-";
/// The longest value, in bytes.
const MAX_VALUE: usize = 16 << 10;

/// Why a word is no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It has no host.
    #[error("a secret is NAME=VALUE@HOST, as in TOKEN=abc@api.example.com; {0:?} names no host")]
    NoHost(String),
    /// Its name is no name of a variable.
    #[error("{0:?} is no name for a secret; use letters, digits and underscores")]
    Name(String),
    /// Its host is none.
    #[error("{host:?}, the host of the secret {name}, is no host name and no *.NAME")]
    Host {
        /// The secret.
        name: String,
        /// What should be a host.
        host: String,
    },
    /// A header that is none.
    #[error("{header:?}, a header of the secret {name}, is no name of a header")]
    Header {
        /// The secret.
        name: String,
        /// What should be a header.
        header: String,
    },
    /// No header can hold its value.
    #[error("the value of the secret {0} is empty, too long, or cannot stand in a header")]
    Value(String),
}

/// A secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    name: String,
    value: String,
    hosts: Vec<DomainPattern>,
    headers: Vec<String>,
    placeholder: String,
}

/// What the guest holds in a secret's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// The secret's name.
    pub secret: String,
    /// What the guest holds.
    pub text: String,
}

impl Secret {
    /// Reads `NAME=VALUE@HOST[,HOST…][/HEADER[,HEADER…]]` or, with the value from `environment`,
    /// `NAME@HOST…`. The value may hold any `@` but none after the last. `random` makes the placeholder one that
    /// nothing else contains.
    ///
    /// # Errors
    ///
    /// [`SecretError`] says what is wrong with the word; it never repeats the value.
    pub fn parse(
        word: &str,
        random: [u8; 16],
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SecretError> {
        let (left, place) = word.rsplit_once('@').ok_or_else(|| {
            SecretError::NoHost(word.split('=').next().unwrap_or_default().to_owned())
        })?;
        let (name, value) = match left.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => (left, environment(left).unwrap_or_default()),
        };
        let of_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty()
            || name.starts_with(|first: char| first.is_ascii_digit())
            || !name.bytes().all(of_name)
        {
            return Err(SecretError::Name(name.to_owned()));
        }
        // Visible ASCII and spaces (RFC 9110 §5.5), so that no value ends its header.
        let fits = value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if value.is_empty() || value.len() > MAX_VALUE || !fits {
            return Err(SecretError::Value(name.to_owned()));
        }
        let (hosts, headers) = place.split_once('/').unwrap_or((place, ""));
        let host = |text: &str| match DomainPattern::parse(text) {
            Some(DomainPattern::Any) | None => {
                Err(SecretError::Host { name: name.to_owned(), host: text.to_owned() })
            }
            Some(pattern) => Ok(pattern),
        };
        let header = |text: &str| {
            let token = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
            if text.is_empty() || !text.bytes().all(token) {
                return Err(SecretError::Header { name: name.to_owned(), header: text.to_owned() });
            }
            Ok(text.to_ascii_lowercase())
        };
        let headers = match headers {
            "" => DEFAULT_HEADERS.iter().map(|header| (*header).to_owned()).collect(),
            headers => headers.split(',').map(header).collect::<Result<_, _>>()?,
        };
        let hosts = hosts.split(',').map(host).collect::<Result<_, _>>()?;
        let placeholder = format!("{PREFIX}{name}-{}", HEXLOWER.encode(&random));
        Ok(Self { name: name.to_owned(), value, hosts, headers, placeholder })
    }

    /// Its name, and that of the variable in which the guest finds the placeholder.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the guest holds.
    pub fn placeholder(&self) -> Placeholder {
        Placeholder { secret: self.name.clone(), text: self.placeholder.clone() }
    }

    /// Whether it is for this host.
    pub fn is_for(&self, host: &DomainName) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// The hosts as rules say them.
    pub fn hosts(&self) -> impl Iterator<Item = String> {
        self.hosts.iter().map(ToString::to_string)
    }
}

/// Never the value.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// Writes the head of a request to `host` with the secrets in the place of their placeholders.
///
/// # Errors
///
/// [`Refusal::Placeholder`] if a placeholder stands where its secret does not belong: in a request to another
/// host, in another header, or in the target.
pub fn rewrite_head(
    secrets: &[Secret],
    host: &DomainName,
    head: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let mut line = line.to_vec();
        for secret in secrets.iter().filter(|secret| secret.is_for(host)) {
            if let Some((name, value)) = field(&line)
                && secret.headers.iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()))
                && let Some(value) = filled(secret, value)
            {
                line = [name, b": ", &value, b"\r\n"].concat();
            }
        }
        let placeholders: Vec<_> = secrets.iter().map(Secret::placeholder).collect();
        refuse_placeholders(&placeholders, &line)?;
        out.extend(line);
    }
    Ok(())
}

/// # Errors
///
/// [`Refusal::Placeholder`] if one of them stands in `bytes`, as it is or in Basic credentials.
pub(crate) fn refuse_placeholders(
    placeholders: &[Placeholder],
    bytes: &[u8],
) -> Result<(), Refusal> {
    if placeholders.is_empty() {
        return Ok(());
    }
    let holds = |bytes: &[u8], text: &str| position(bytes, text.as_bytes()).is_some();
    for placeholder in placeholders {
        let basic = bytes
            .split(|byte| *byte == b'\n')
            .filter_map(field)
            .filter_map(|(_, value)| basic(value))
            .any(|credentials| holds(&credentials, &placeholder.text));
        if basic || holds(bytes, &placeholder.text) {
            return Err(Refusal::Placeholder { secret: placeholder.secret.clone() });
        }
    }
    Ok(())
}

/// Name and value of a header field's line.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at_checked(at)?;
    Some((name, value.get(1..)?.trim_ascii()))
}

/// The value with the secret in it, if it holds the placeholder.
fn filled(secret: &Secret, value: &[u8]) -> Option<Vec<u8>> {
    if let Some(credentials) = basic(value) {
        let filled = replaced(&credentials, secret)?;
        return Some(format!("Basic {}", BASE64.encode(&filled)).into_bytes());
    }
    replaced(value, secret)
}

/// `user:password` of Basic credentials (RFC 7617).
fn basic(value: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let encoded = scheme.eq_ignore_ascii_case(b"basic ").then(|| rest.trim_ascii())?;
    BASE64.decode(encoded).ok()
}

fn replaced(bytes: &[u8], secret: &Secret) -> Option<Vec<u8>> {
    let placeholder = secret.placeholder.as_bytes();
    let mut rest = bytes;
    let mut out = Vec::new();
    while let Some(at) = position(rest, placeholder) {
        let (before, found) = rest.split_at_checked(at)?;
        out.extend_from_slice(before);
        out.extend_from_slice(secret.value.as_bytes());
        rest = found.get(placeholder.len()..)?;
    }
    (rest.len() < bytes.len()).then(|| [&out, rest].concat())
}

fn position(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(word: &str) -> Result<Secret, SecretError> {
        Secret::parse(word, [7; 16], |name| (name == "TOKEN").then(|| "from-env".to_owned()))
    }

    fn rewritten(secrets: &[Secret], host: &str, lines: &str) -> Result<String, Refusal> {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n");
        let mut out = Vec::new();
        rewrite_head(secrets, &DomainName::parse(host).unwrap(), head.as_bytes(), &mut out)?;
        let out = String::from_utf8(out).unwrap();
        let start = format!("GET / HTTP/1.1\r\nHost: {host}\r\n");
        assert!(out.starts_with(&start) && out.ends_with("\r\n\r\n"), "{out:?}");
        Ok(out[start.len()..out.len() - 2].to_owned())
    }

    #[test]
    fn a_secret_is_read() {
        let secret = secret("KEY=a@b:c@api.example.com,*.example.org/X-Key").unwrap();
        assert_eq!((secret.name(), secret.value.as_str()), ("KEY", "a@b:c"));
        assert!(secret.is_for(&DomainName::parse("x.example.org").unwrap()));
        assert_eq!(secret.headers, ["x-key"]);
        assert!(!format!("{secret:?}").contains("a@b"));
        assert_eq!(
            super::Secret::parse("TOKEN@a.example", [0; 16], |_| None),
            Err(SecretError::Value("TOKEN".to_owned()))
        );
    }

    #[test]
    fn the_value_may_come_from_the_environment() {
        assert_eq!(secret("TOKEN@a.example").unwrap().value, "from-env");
    }

    #[test]
    fn what_is_no_secret_says_why_without_the_value() {
        for word in [
            "A=hush",
            "=hush@a.example",
            "1A=hush@a.example",
            "A=hush@",
            "A=hush@*",
            "A=hush@1.2.3.4",
            "A=hush\r\nX: y@a.example",
            "A=@a.example",
            "A=hush@a.example/b c",
        ] {
            let error = secret(word).unwrap_err().to_string();
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_placeholder_becomes_the_value_where_it_belongs() {
        let secrets = [secret("A=value@a.example").unwrap(), secret("B=other@b.example").unwrap()];
        let placeholder = &secrets[0].placeholder;
        let head = format!("Authorization: Bearer {placeholder}\r\nAccept: */*\r\n");
        let expected = "Authorization: Bearer value\r\nAccept: */*\r\n";
        assert_eq!(rewritten(&secrets, "a.example", &head).unwrap(), expected);
        let head = format!("AUTHORIZATION:token {placeholder}  \r\n");
        assert_eq!(
            rewritten(&secrets, "a.example", &head).unwrap(),
            "AUTHORIZATION: token value\r\n"
        );
        assert_eq!(rewritten(&secrets, "a.example", "Accept: x\r\n").unwrap(), "Accept: x\r\n");
    }

    #[test]
    fn basic_credentials_are_opened() {
        let secrets = [secret("A=value@a.example").unwrap()];
        let credentials = BASE64.encode(format!("me:{}", secrets[0].placeholder).as_bytes());
        let head = format!("Authorization: Basic {credentials}\r\n");
        let expected = format!("Authorization: Basic {}\r\n", BASE64.encode(b"me:value"));
        assert_eq!(rewritten(&secrets, "a.example", &head).unwrap(), expected);
        let refused = rewritten(&secrets, "b.example", &head);
        assert_eq!(refused, Err(Refusal::Placeholder { secret: "A".to_owned() }));
    }

    #[test]
    fn a_placeholder_elsewhere_is_refused() {
        let secrets = [secret("A=value@a.example").unwrap()];
        let placeholder = &secrets[0].placeholder;
        let refused = Err(Refusal::Placeholder { secret: "A".to_owned() });
        let authorization = format!("Authorization: Bearer {placeholder}\r\n");
        assert_eq!(rewritten(&secrets, "b.example", &authorization), refused);
        let cookie = format!("Cookie: {placeholder}\r\n");
        assert_eq!(rewritten(&secrets, "a.example", &cookie), refused);
        let head = format!("GET /{placeholder} HTTP/1.1\r\nHost: a.example\r\n\r\n");
        let host = DomainName::parse("a.example").unwrap();
        assert!(rewrite_head(&secrets, &host, head.as_bytes(), &mut Vec::new()).is_err());
    }
}
