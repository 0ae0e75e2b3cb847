//! What passes between guest and stack, in a file that Wireshark and tcpdump read: pcap with nanoseconds
//! (draft-ietf-opsawg-pcap).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
/// No frame is longer.
const SNAP_LEN: u32 = 65_535 + 14;

/// A file of frames.
#[derive(Debug)]
pub struct Capture {
    file: BufWriter<File>,
    /// The first write that failed; nothing is written after it.
    failed: Option<io::Error>,
}

impl Capture {
    /// Makes the file, in place of one that was there.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(256 << 10, File::create(path)?);
        file.write_all(&MAGIC_NANOSECONDS.to_le_bytes())?;
        for half in [2u16, 4] {
            file.write_all(&half.to_le_bytes())?;
        }
        for word in [0, 0, SNAP_LEN, LINKTYPE_ETHERNET] {
            file.write_all(&word.to_le_bytes())?;
        }
        file.flush()?;
        Ok(Self { file, failed: None })
    }

    /// Notes a frame. A disk that is full ends the capture, not the network.
    pub(crate) fn frame(&mut self, frame: &[u8]) {
        if self.failed.is_none()
            && let Err(error) = self.write(frame)
        {
            self.failed = Some(error);
        }
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let len = frame.len() as u32;
        for word in [now.as_secs() as u32, now.subsec_nanos(), len, len] {
            self.file.write_all(&word.to_le_bytes())?;
        }
        self.file.write_all(frame)
    }

    /// Brings what was noted into the file.
    pub(crate) fn flush(&mut self) {
        if self.failed.is_none()
            && let Err(error) = self.file.flush()
        {
            self.failed = Some(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_has_a_header_and_a_record_for_each_frame() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pcap");
        let mut capture = Capture::create(&path).unwrap();
        capture.frame(&[1; 60]);
        capture.frame(&[2; 100]);
        capture.flush();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 2 * 16 + 160);
        assert_eq!(bytes[..8], [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(bytes[24 + 8..24 + 16], [60, 0, 0, 0, 60, 0, 0, 0]);
        assert_eq!(bytes[24 + 16..24 + 76], [1; 60]);
    }
}
