//! HTTP/1 requests (RFC 9112), one after the other on a connection, read so strictly that no server can find
//! another request in them than is seen here.

use super::{EditHead, Hosts, MAX_HELD, Progress, Refusal, excerpt};

/// The most header fields of a request.
const MAX_FIELDS: usize = 128;
/// The longest line of a chunk's size, with its extensions.
const MAX_CHUNK_LINE: usize = 256;
/// The longest trailer section.
const MAX_TRAILERS: usize = 8 << 10;
const CRLF: &[u8] = b"\r\n";
/// How HTTP/2 begins without TLS (RFC 9113 §3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// First bytes of a WebSocket frame: FIN or not, and an opcode that a first frame may have (RFC 6455 §5.2). None
/// of them begins an HTTP request.
const WEBSOCKET: &[u8] = &[0x01, 0x02, 0x81, 0x82, 0x88, 0x89, 0x8a];

/// Watches every request of a connection.
#[derive(Clone, Debug)]
pub(super) struct Watch(Part);

/// What comes next.
#[derive(Clone, Debug)]
enum Part {
    Head,
    /// This many bytes of a body.
    Body(u64),
    ChunkSize,
    /// This many bytes of a chunk.
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// A server that did not switch to WebSocket reads a request here.
    WebSocket,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self(Part::Head)
    }

    /// Judges what is at the front of `held`; what of it may pass goes to `out`, and its length is
    /// returned.
    pub(super) fn advance(
        &mut self,
        held: &[u8],
        hosts: &mut Hosts,
        out: &mut Vec<u8>,
        edit: &mut EditHead<'_>,
    ) -> Result<(usize, Progress), Refusal> {
        let mut judged = 0;
        while let Some(rest @ [first, ..]) = held.get(judged..) {
            let step = match self.0 {
                Part::Head => match head(rest)? {
                    None => None,
                    Some(head) => Some((head.len(), request(head, hosts)?)),
                },
                Part::Body(left) => Some(pass(rest, left, Part::Head, Part::Body)),
                Part::Chunk(left) => Some(pass(rest, left, Part::ChunkEnd, Part::Chunk)),
                Part::ChunkSize => match line(rest, MAX_CHUNK_LINE)? {
                    None => None,
                    Some(line) => Some(match chunk_size(line)? {
                        0 => (line.len(), Part::Trailers),
                        size => (line.len(), Part::Chunk(size)),
                    }),
                },
                Part::ChunkEnd => match line(rest, CRLF.len())? {
                    Some(line) if line != CRLF => {
                        return Err(malformed("a chunk is longer than its size"));
                    }
                    line => line.map(|line| (line.len(), Part::ChunkSize)),
                },
                Part::Trailers => line(rest, MAX_TRAILERS)?.map(|line| {
                    (line.len(), if line == CRLF { Part::Head } else { Part::Trailers })
                }),
                Part::WebSocket if WEBSOCKET.contains(first) => {
                    return Ok((judged, Progress::Passed));
                }
                Part::WebSocket => return Err(malformed("no WebSocket frame after the upgrade")),
            };
            let Some((length, next)) = step else { break };
            let judged_now = rest.get(..length).unwrap_or_default();
            match (&self.0, &hosts.named) {
                (Part::Head, Some(host)) => edit(host, judged_now, out)?,
                _ => out.extend_from_slice(judged_now),
            }
            judged += length;
            self.0 = next;
        }
        Ok((judged, Progress::Watching))
    }
}

/// How much of a body may pass, and what comes then.
fn pass(held: &[u8], left: u64, end: Part, more: fn(u64) -> Part) -> (usize, Part) {
    let length = usize::try_from(left).map_or(held.len(), |left| left.min(held.len()));
    match left - length as u64 {
        0 => (length, end),
        left => (length, more(left)),
    }
}

/// A line with its CRLF, if the line has ended.
fn line(held: &[u8], longest: usize) -> Result<Option<&[u8]>, Refusal> {
    let length = held.iter().take_while(|byte| **byte != b'\n').count() + 1;
    match held.get(..length) {
        Some(line) if !line.ends_with(CRLF) => Err(malformed("a line ends without CR")),
        Some(line) if length <= longest => Ok(Some(line)),
        None if length <= longest => Ok(None),
        _ => Err(malformed("a line is too long")),
    }
}

/// A request's head with its empty line, if it has ended.
fn head(held: &[u8]) -> Result<Option<&[u8]>, Refusal> {
    if held.starts_with(HTTP2_PREFACE) {
        return Err(Refusal::Http2);
    }
    if matches!(held.first(), Some(b'\r' | b'\n')) {
        return Err(malformed("an empty line before the request"));
    }
    let mut length = 0;
    while let Some(line) = line(held.get(length..).unwrap_or_default(), MAX_HELD)? {
        length += line.len();
        if line == CRLF {
            return Ok(held.get(..length));
        }
    }
    Ok(None)
}

/// Judges a request's head and says what follows it.
fn request(head: &[u8], hosts: &mut Hosts) -> Result<Part, Refusal> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(malformed("the head has two ends")),
        Err(httparse::Error::Token | httparse::Error::Version) => return Err(Refusal::NotHttp),
        Err(error) => return Err(malformed(&error.to_string())),
    }
    let method = request.method.unwrap_or_default();
    if method.eq_ignore_ascii_case("CONNECT") {
        return Err(Refusal::Tunnel { what: "CONNECT".to_owned() });
    }
    if head.iter().any(|byte| *byte == 0 || *byte == 0x0b || *byte == 0x0c) {
        return Err(malformed("a control character"));
    }
    target(request.path.unwrap_or_default(), hosts)?;
    let host = only(request.headers, "host")?.ok_or_else(|| malformed("no Host"))?;
    check_authority(host, hosts)?;

    let length = only(request.headers, "content-length")?;
    let encoding = only(request.headers, "transfer-encoding")?;
    let upgrade = only(request.headers, "upgrade")?;
    if upgrade.is_some_and(|value| !value.eq_ignore_ascii_case(b"websocket")) {
        return Err(Refusal::Tunnel { what: excerpt(upgrade.unwrap_or_default()) });
    }
    match (length, encoding) {
        (None, None) if upgrade.is_some() => Ok(Part::WebSocket),
        _ if upgrade.is_some() => Err(malformed("an upgrade with a body")),
        (None, None) => Ok(Part::Head),
        (Some(length), None) => match content_length(length)? {
            0 => Ok(Part::Head),
            length => Ok(Part::Body(length)),
        },
        (None, Some(encoding)) if encoding.eq_ignore_ascii_case(b"chunked") => {
            match request.version {
                Some(1) => Ok(Part::ChunkSize),
                _ => Err(malformed("chunks in HTTP/1.0")),
            }
        }
        (None, Some(_)) => Err(malformed("a transfer coding other than chunked")),
        (Some(_), Some(_)) => Err(malformed("both Content-Length and Transfer-Encoding")),
    }
}

/// The target: a path, `*`, or a whole URL, whose host must be the allowed one too (RFC 9112 §3.2).
fn target(path: &str, hosts: &mut Hosts) -> Result<(), Refusal> {
    if path.starts_with('/') || path == "*" {
        return Ok(());
    }
    let rest = match path.split_at_checked(7) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http://") => rest,
        _ => return Err(malformed("a target that is neither a path nor a http URL")),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    check_authority(authority.as_bytes(), hosts)
}

/// `host` or `host:port`.
fn check_authority(authority: &[u8], hosts: &mut Hosts) -> Result<(), Refusal> {
    let mut parts = authority.splitn(2, |byte| *byte == b':');
    let (name, port) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if port.len() > 5 || !port.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::OtherHost { named: excerpt(authority) });
    }
    hosts.check(name, |expect| expect.http)
}

/// The value of a field that may stand there once.
fn only<'a>(fields: &[httparse::Header<'a>], name: &str) -> Result<Option<&'a [u8]>, Refusal> {
    let mut values = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(malformed(&format!("{name} twice"))),
        (first, None) => Ok(first.map(|field| field.value)),
    }
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = std::str::from_utf8(value).ok();
    digits
        .filter(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| malformed("a Content-Length that is no number"))
}

/// The size in a chunk's first line (RFC 9112 §7.1).
fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let line = line.strip_suffix(CRLF).unwrap_or(line);
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    let clean = !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| clean);
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .filter(|_| !line.contains(&b'\r'))
        .ok_or_else(|| malformed("a chunk's size that is no number"))
}

fn malformed(what: &str) -> Refusal {
    Refusal::MalformedHttp { what: what.to_owned() }
}
