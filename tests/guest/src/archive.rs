//! Initramfs archives for [`cabana boot`](crate::Host::cabana) (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`, "newc").

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const DEVICE: u32 = 0o020_600;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive with `/dev/console`, which the kernel opens for init.
    pub fn new() -> Self {
        Self::default().folder("dev").entry("dev/console", DEVICE, (5, 1), &[])
    }

    /// Adds a folder.
    #[must_use]
    pub fn folder(self, path: &str) -> Self {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// Adds a program.
    #[must_use]
    pub fn program(self, path: &str, content: &[u8]) -> Self {
        self.entry(path, EXECUTABLE, (0, 0), content)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(path, LINK, (0, 0), target.as_bytes())
    }

    /// The whole archive.
    pub fn finish(self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]).bytes
    }

    fn entry(mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Self {
        self.entries += 1;
        let (size, name_size) = (content.len() as u32, path.len() as u32 + 1);
        // Inode, mode, owner, group, links, time, size, device of the file system, device of a node,
        // size of the name with its zero, no checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
        self
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A program that writes `text` to standard output, then `status` to `port` if there is one, and exits
/// with `status`: an ELF file of one segment, its code after its headers.
pub fn init_program(text: &str, status: u8, port: Option<u16>) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut code = Vec::new();
    let mut put = |bytes: &[u8]| code.extend_from_slice(bytes);
    // write(1, words, len): eax = 1, edi = 1, esi = address, edx = length.
    put(&[0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0xbe]);
    let address_of_text = 11;
    put(&[0; 4]);
    put(&[0xba]);
    put(&(text.len() as u32).to_le_bytes());
    put(&[0x0f, 0x05]);
    // ioctl(1, TCSBRK, 1): eax = 16, edi = 1, esi = 0x5409, edx = 1. Waits until a terminal has passed the
    // text on: another processor may be at it.
    put(&[
        0xb8, 16, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0xbe, 0x09, 0x54, 0, 0, 0xba, 1, 0, 0, 0, 0x0f, 0x05,
    ]);
    if let Some(port) = port {
        // ioperm(port, 1, 1): eax = 173, edi = port, esi = 1, edx = 1; then dx = port, al = status.
        put(&[0xb8, 173, 0, 0, 0, 0xbf]);
        put(&u32::from(port).to_le_bytes());
        put(&[0xbe, 1, 0, 0, 0, 0xba, 1, 0, 0, 0, 0x0f, 0x05, 0xba]);
        put(&u32::from(port).to_le_bytes());
        put(&[0xb0, status, 0xee]);
    }
    // exit(status): eax = 60, edi = status.
    put(&[0xb8, 60, 0, 0, 0, 0xbf, status, 0, 0, 0, 0x0f, 0x05]);
    let text_at = (BASE + HEADERS) as u32 + code.len() as u32;
    code[address_of_text..address_of_text + 4].copy_from_slice(&text_at.to_le_bytes());
    code.extend_from_slice(text.as_bytes());

    let length = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |values: &[u16]| -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    };
    let words = |values: &[u64]| -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    };
    // An executable for x86-64, version 1; entry, program headers, section headers.
    elf.extend(halves(&[2, 62, 1, 0]));
    elf.extend(words(&[BASE + HEADERS, 64, 0]));
    // No flags; sizes: header, program header; one of them; no sections.
    elf.extend(halves(&[0, 0, 64, 56, 1, 0, 0, 0]));
    // Load, readable and executable.
    elf.extend(halves(&[1, 0, 5, 0]));
    elf.extend(words(&[0, BASE, BASE, length, length, 0x1000]));
    elf.extend_from_slice(&code);
    elf
}
