//! Frames: the length of the payload (4 bytes, little endian), the kind (1 byte), the payload.
//!
//! Bulk data travels as raw bytes; the other kinds carry one `postcard`-encoded [`Message`]
//! each. A frame that is longer than [`MAX_PAYLOAD`] or of an unknown kind is refused as soon as its
//! header is there.

use std::io::{self, IoSlice, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ProtocolError;

/// The most bytes of payload in one frame.
pub const MAX_PAYLOAD: usize = 256 * 1024;

/// The size of a frame's header in bytes.
pub const HEADER: usize = 5;

/// How much [`Decoder::fill`] asks of its stream at once.
const READ_SIZE: usize = 64 * 1024;

/// What the payload of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`GuestMessage`](crate::GuestMessage) of the control connection.
    ToHost = 1,
    /// A [`HostMessage`](crate::HostMessage) of the control connection.
    ToGuest = 2,
    /// An [`ExecRequest`](crate::ExecRequest).
    ExecRequest = 3,
    /// An [`ExecReply`](crate::ExecReply).
    ExecReply = 4,
    /// Raw bytes for the command's standard input; none at all is its end.
    Stdin = 5,
    /// Raw bytes of the command's standard output.
    Stdout = 6,
    /// Raw bytes of the command's standard error.
    Stderr = 7,
    /// A [`Request`](crate::Request).
    Request = 8,
    /// A [`Reply`](crate::Reply).
    Reply = 9,
    /// An [`Entry`](crate::Entry) of a transfer.
    Entry = 10,
    /// Raw bytes of a file or a tunnel; none at all is their end.
    Data = 11,
    /// A [`Watcher`](crate::watch::Watcher) of the watch connection.
    Watcher = 64,
    /// A [`Replay`](crate::watch::Replay) of the watch connection.
    Replay = 65,
    /// A [`Replayed`](crate::watch::Replayed) of the watch connection.
    Replayed = 66,
}

impl TryFrom<u8> for Kind {
    type Error = ProtocolError;

    fn try_from(byte: u8) -> Result<Self, ProtocolError> {
        Ok(match byte {
            1 => Self::ToHost,
            2 => Self::ToGuest,
            3 => Self::ExecRequest,
            4 => Self::ExecReply,
            5 => Self::Stdin,
            6 => Self::Stdout,
            7 => Self::Stderr,
            8 => Self::Request,
            9 => Self::Reply,
            10 => Self::Entry,
            11 => Self::Data,
            64 => Self::Watcher,
            65 => Self::Replay,
            66 => Self::Replayed,
            unknown => return Err(ProtocolError::UnknownKind(unknown)),
        })
    }
}

/// A message that frames of one kind carry.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind of its frames.
    const KIND: Kind;

    /// The message as a whole frame, header included.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::TooLong`] when it exceeds [`MAX_PAYLOAD`].
    fn to_frame(&self) -> Result<Vec<u8>, ProtocolError> {
        let frame = postcard::to_extend(self, vec![0; HEADER])
            .map_err(|source| ProtocolError::Malformed { kind: Self::KIND, source })?;
        let header = header(Self::KIND, frame.len() - HEADER)?;
        let mut frame = frame;
        frame[..HEADER].copy_from_slice(&header);
        Ok(frame)
    }
}

/// One frame that was received; its payload stands in the buffer of its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: Kind,
    /// The payload.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Decodes the payload as a message.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::UnexpectedKind`] for a frame of another kind and
    /// [`ProtocolError::Malformed`] for bytes that are not, or not only, the message.
    pub fn message<M: Message>(&self) -> Result<M, ProtocolError> {
        if self.kind != M::KIND {
            return Err(ProtocolError::UnexpectedKind(self.kind));
        }
        let malformed = |source| ProtocolError::Malformed { kind: M::KIND, source };
        match postcard::take_from_bytes(self.payload) {
            Ok((message, [])) => Ok(message),
            Ok(_) => Err(malformed(postcard::Error::DeserializeBadEncoding)),
            Err(source) => Err(malformed(source)),
        }
    }
}

/// The header of a frame with `length` bytes of payload.
///
/// # Errors
///
/// [`ProtocolError::TooLong`] when `length` exceeds [`MAX_PAYLOAD`].
pub fn header(kind: Kind, length: usize) -> Result<[u8; HEADER], ProtocolError> {
    if length > MAX_PAYLOAD {
        return Err(ProtocolError::TooLong { length, limit: MAX_PAYLOAD });
    }
    let [a, b, c, d] = (length as u32).to_le_bytes();
    Ok([a, b, c, d, kind as u8])
}

/// What a header says: the kind and the length of the payload.
fn parse_header(header: [u8; HEADER]) -> Result<(Kind, usize), ProtocolError> {
    let [a, b, c, d, kind] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_PAYLOAD {
        return Err(ProtocolError::TooLong { length, limit: MAX_PAYLOAD });
    }
    Ok((Kind::try_from(kind)?, length))
}

/// Writes a frame to a blocking stream without copying its payload.
pub fn write_frame(
    stream: &mut (impl Write + ?Sized),
    kind: Kind,
    payload: &[u8],
) -> Result<(), ProtocolError> {
    let header = header(kind, payload.len())?;
    let mut slices = [IoSlice::new(&header), IoSlice::new(payload)];
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(ProtocolError::Closed),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes a message to a blocking stream.
pub fn write_message<M: Message>(
    stream: &mut (impl Write + ?Sized),
    message: &M,
) -> Result<(), ProtocolError> {
    Ok(stream.write_all(&message.to_frame()?)?)
}

/// Reads a frame from a blocking stream, its payload into `buffer`; `None` when the peer closed the
/// connection between two frames.
pub fn read_frame<'a>(
    stream: &mut (impl Read + ?Sized),
    buffer: &'a mut Vec<u8>,
) -> Result<Option<Frame<'a>>, ProtocolError> {
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match stream.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(ProtocolError::Closed),
            Ok(read) => have += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (kind, length) = parse_header(header)?;
    buffer.resize(length, 0);
    stream.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ProtocolError::Closed,
        _ => error.into(),
    })?;
    Ok(Some(Frame { kind, payload: buffer }))
}

/// Reads a message from a blocking stream.
///
/// # Errors
///
/// [`ProtocolError::Closed`] when the peer closed the connection, and what [`Frame::message`] says.
pub fn read_message<M: Message>(stream: &mut (impl Read + ?Sized)) -> Result<M, ProtocolError> {
    let mut buffer = Vec::new();
    read_frame(stream, &mut buffer)?.ok_or(ProtocolError::Closed)?.message()
}

/// Cuts a stream of bytes into frames, for loops that poll.
///
/// It holds what was put in and not yet taken out as frames: a caller that takes every frame before it
/// puts more in bounds it by one frame and one read.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes received: `buffer[start..end]`. What stands beyond `end` is room.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Decoder {
    /// An empty decoder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Puts in what one `read` of the stream returns, without a copy, and says how much; 0 is the end
    /// of the stream.
    pub fn fill(&mut self, stream: &mut (impl Read + ?Sized)) -> io::Result<usize> {
        let room = self.room(READ_SIZE);
        let most = room.len();
        // A reader that claims more than it was given is broken, not hostile.
        let read = stream.read(room)?.min(most);
        self.end += read;
        Ok(read)
    }

    /// The next whole frame, or `None` while more bytes are due.
    ///
    /// # Errors
    ///
    /// [`ProtocolError::TooLong`] and [`ProtocolError::UnknownKind`], as soon as the header is there.
    /// The decoder is of no use afterwards.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        let bytes = &self.buffer[self.start..self.end];
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (kind, length) = parse_header(*header)?;
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        self.start += HEADER + length;
        Ok(Some(Frame { kind, payload }))
    }

    /// Whether nothing is held: the stream stands between two frames.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// `size` bytes of room behind the bytes received.
    fn room(&mut self, size: usize) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < self.end + size {
            self.buffer.resize(self.end + size, 0);
        }
        &mut self.buffer[self.end..self.end + size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExecReply, ExecRequest, TtySize};

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Kind::Stdout, b"output").unwrap();
        write_frame(&mut bytes, Kind::Stdin, b"").unwrap();
        write_frame(&mut bytes, Kind::Stderr, &vec![7; MAX_PAYLOAD]).unwrap();
        write_message(&mut bytes, &ExecReply::Started { pid: 300, process: 7 }).unwrap();
        for cut in [1, 4, 5, 6, 4096, bytes.len()] {
            let mut decoder = Decoder::new();
            let mut frames = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push((frame.kind, frame.payload.to_vec()));
                }
            }
            assert!(decoder.is_empty());
            assert_eq!(frames.len(), 4, "cut into pieces of {cut}");
            assert_eq!(frames[0], (Kind::Stdout, b"output".to_vec()));
            assert_eq!(frames[1], (Kind::Stdin, Vec::new()));
            assert_eq!(frames[2], (Kind::Stderr, vec![7; MAX_PAYLOAD]));
            let last = Frame { kind: frames[3].0, payload: &frames[3].1 };
            assert_eq!(
                last.message::<ExecReply>().unwrap(),
                ExecReply::Started { pid: 300, process: 7 }
            );
        }
    }

    #[test]
    fn the_blocking_reader_agrees_with_the_decoder() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Kind::Stdout, b"one").unwrap();
        write_message(&mut bytes, &ExecRequest::Signal(15)).unwrap();
        let (mut stream, mut buffer) = (&bytes[..], Vec::new());
        let frame = read_frame(&mut stream, &mut buffer).unwrap().unwrap();
        assert_eq!(frame, Frame { kind: Kind::Stdout, payload: b"one" });
        assert_eq!(read_message::<ExecRequest>(&mut stream).unwrap(), ExecRequest::Signal(15));
        assert!(read_frame(&mut stream, &mut buffer).unwrap().is_none());
        assert!(matches!(read_message::<ExecRequest>(&mut stream), Err(ProtocolError::Closed)));
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_closed() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, Kind::Stdout, b"output").unwrap();
        for end in 1..bytes.len() {
            let result = read_frame(&mut &bytes[..end], &mut Vec::new()).map(|_| ());
            assert!(matches!(result, Err(ProtocolError::Closed)), "cut after {end}");
        }
    }

    #[test]
    fn too_long_and_unknown_frames_are_refused_by_their_header() {
        for (header, too_long) in [
            ([1, 0, 4, 0, 5], true),
            ([255; 5], true),
            ([0, 0, 0, 0, 0], false),
            ([1, 0, 0, 0, 12], false),
        ] {
            let mut decoder = Decoder::new();
            decoder.push(&header);
            let errors = [
                decoder.next_frame().unwrap_err(),
                read_frame(&mut &header[..], &mut Vec::new()).unwrap_err(),
            ];
            for error in errors {
                match error {
                    ProtocolError::TooLong { limit, .. } => {
                        assert!(too_long && limit == MAX_PAYLOAD);
                    }
                    ProtocolError::UnknownKind(kind) => assert!(!too_long && kind == header[4]),
                    other => panic!("{other}"),
                }
            }
        }
        let mut sink = Vec::new();
        let result = write_frame(&mut sink, Kind::Stdin, &vec![0; MAX_PAYLOAD + 1]);
        assert!(matches!(result, Err(ProtocolError::TooLong { .. })));
        assert!(sink.is_empty());
    }

    #[test]
    fn messages_of_the_wrong_kind_or_length_are_refused() {
        let frame = ExecRequest::Resize(TtySize { rows: 24, cols: 80 }).to_frame().unwrap();
        let payload = &frame[HEADER..];
        let refused =
            |kind, payload: &[u8]| Frame { kind, payload }.message::<ExecRequest>().unwrap_err();
        assert!(matches!(
            refused(Kind::Stdin, payload),
            ProtocolError::UnexpectedKind(Kind::Stdin)
        ));
        for end in 0..payload.len() {
            let error = refused(Kind::ExecRequest, &payload[..end]);
            assert!(matches!(error, ProtocolError::Malformed { .. }), "{end}: {error}");
        }
        let longer = [payload, &[0]].concat();
        assert!(matches!(refused(Kind::ExecRequest, &longer), ProtocolError::Malformed { .. }));
    }

    #[test]
    fn a_length_within_a_message_allocates_nothing_that_did_not_come() {
        // An `Exec` whose `argv` claims 2^60 entries.
        let payload = [0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
        let frame = Frame { kind: Kind::ExecRequest, payload: &payload };
        assert!(matches!(frame.message::<ExecRequest>(), Err(ProtocolError::Malformed { .. })));
    }

    #[test]
    fn the_decoder_reads_from_a_stream_until_it_ends() {
        let mut bytes = Vec::new();
        for _ in 0..3 {
            write_frame(&mut bytes, Kind::Stdin, &vec![1; 100_000]).unwrap();
        }
        let (mut decoder, mut stream, mut total) = (Decoder::new(), &bytes[..], 0);
        while decoder.fill(&mut stream).unwrap() > 0 {
            while let Some(frame) = decoder.next_frame().unwrap() {
                total += frame.payload.len();
            }
        }
        assert_eq!(total, 300_000);
    }
}
