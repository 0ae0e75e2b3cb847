//! The `ClientHello` of TLS (RFC 8446 §4.1.2) in records (§5.1), and the second one that a server may ask for.

use super::{HANDSHAKE, Hosts, MAX_HELD, Progress, Refusal};

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const APPLICATION_DATA: u8 = 23;
/// The most bytes in a plain record (RFC 8446 §5.1).
const MAX_RECORD: usize = 1 << 14;
/// Bytes before a record's content, and before a handshake message's.
const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
const CLIENT_HELLO: u8 = 1;
/// `server_name` (RFC 6066 §3) and its one kind of name.
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// `encrypted_client_hello` (RFC 9849), its drafts, and the ESNI before them.
const ENCRYPTED: &[u16] = &[0xfe0d, 0xfe0c, 0xfe0b, 0xfe0a, 0xfe09, 0xfe08, 0xfe02, 0xffce];

/// Watches until what the client sends is encrypted.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    greeted: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { greeted: false }
    }

    /// Judges whole records at the front of `held`; how many bytes of them may pass.
    pub(super) fn advance(
        &mut self,
        held: &[u8],
        hosts: &mut Hosts,
        ech: bool,
    ) -> Result<(usize, Progress), Refusal> {
        let mut judged = 0;
        loop {
            let rest = held.get(judged..).unwrap_or_default();
            let Some((kind, content)) = record(rest)? else {
                return Ok((judged, Progress::Watching));
            };
            match (kind, self.greeted) {
                (HANDSHAKE, true) if content.first() != Some(&CLIENT_HELLO) => {
                    return Ok((judged, Progress::Passed));
                }
                (HANDSHAKE, _) => {
                    let Some((hello, records)) = message(rest)? else {
                        return Ok((judged, Progress::Watching));
                    };
                    hosts.check(server_name(&hello, ech)?, |expect| expect.tls)?;
                    judged += records;
                    self.greeted = true;
                }
                // Sent before a second ClientHello for the sake of middleboxes (RFC 8446 §D.4).
                (CHANGE_CIPHER_SPEC, true) => judged += RECORD_HEADER + content.len(),
                (ALERT | APPLICATION_DATA, true) => return Ok((judged, Progress::Passed)),
                _ => return Err(Refusal::MalformedTls),
            }
        }
    }
}

/// Kind and content of the first record, if it is there as a whole.
fn record(bytes: &[u8]) -> Result<Option<(u8, &[u8])>, Refusal> {
    let [kind, major, _, high, low, rest @ ..] = bytes else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    // Encrypted records are longer by a cipher's expansion, and are only looked at by their kind.
    let longest = if *kind == HANDSHAKE { MAX_RECORD } else { MAX_RECORD + 2048 };
    if *major != 3 || length == 0 || length > longest {
        return Err(Refusal::MalformedTls);
    }
    Ok(rest.get(..length).map(|content| (*kind, content)))
}

/// The body of a handshake message that begins with the first record and fills records to the last byte, and
/// how many bytes those are.
fn message(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Refusal> {
    let (mut whole, mut taken) = (Vec::new(), 0);
    loop {
        if let [CLIENT_HELLO, a, b, c, body @ ..] = whole.as_slice() {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if length + MESSAGE_HEADER > MAX_HELD || body.len() > length {
                return Err(Refusal::MalformedTls);
            }
            if body.len() == length {
                return Ok(Some((body.to_vec(), taken)));
            }
        } else if whole.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Refusal::MalformedTls);
        }
        let rest = bytes.get(taken..).unwrap_or_default();
        let Some((kind, content)) = record(rest)? else { return Ok(None) };
        if kind != HANDSHAKE {
            return Err(Refusal::MalformedTls);
        }
        whole.extend_from_slice(content);
        taken += RECORD_HEADER + content.len();
    }
}

/// The host name in a `ClientHello`.
fn server_name(hello: &[u8], ech: bool) -> Result<&[u8], Refusal> {
    let mut hello = Reader(hello);
    hello.take(2 + 32)?; // legacy_version, random
    hello.vector8()?; // legacy_session_id
    hello.vector16()?; // cipher_suites
    hello.vector8()?; // legacy_compression_methods
    if hello.0.is_empty() {
        return Err(Refusal::NoServerName);
    }
    let mut extensions = Reader(hello.vector16()?);
    if !hello.0.is_empty() {
        return Err(Refusal::MalformedTls);
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number16()?;
        let content = extensions.vector16()?;
        if ENCRYPTED.contains(&kind) && !ech {
            return Err(Refusal::Ech);
        }
        if kind == SERVER_NAME {
            let previous = name.replace(only_name(content)?);
            if previous.is_some() {
                return Err(Refusal::MalformedTls);
            }
        }
    }
    name.ok_or(Refusal::NoServerName)
}

/// The one entry of a `ServerNameList`. More than one would leave it to the server which it takes.
fn only_name(content: &[u8]) -> Result<&[u8], Refusal> {
    let mut content = Reader(content);
    let mut list = Reader(content.vector16()?);
    let (kind, name) = (list.take(1)?, list.vector16()?);
    if kind != [HOST_NAME] || !list.0.is_empty() || !content.0.is_empty() {
        return Err(Refusal::MalformedTls);
    }
    Ok(name)
}

/// Vectors with a length before them (RFC 8446 §3.4).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Refusal::MalformedTls)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number16(&mut self) -> Result<u16, Refusal> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Refusal::MalformedTls)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    fn vector8(&mut self) -> Result<&'a [u8], Refusal> {
        let (length, rest) = self.0.split_first().ok_or(Refusal::MalformedTls)?;
        self.0 = rest;
        self.take(usize::from(*length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}
