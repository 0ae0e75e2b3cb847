//! Names that the guest sends. A name is one component of a path, never a path: containment
//! begins here.

use std::ffi::CStr;

use crate::wire::{Errno, Result};

/// The longest name, in bytes (`NAME_MAX`).
pub(crate) const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes, without the NUL.
pub(crate) const TARGET_MAX: usize = 4095;

/// One component of a path: neither empty nor `.` nor `..`, no slash, at most 255 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// The name at the start of `bytes`, up to its NUL, and what follows it.
    pub(crate) fn take(bytes: &'a [u8]) -> Result<(Self, &'a [u8])> {
        let (name, rest) = take_string(bytes)?;
        Ok((Self::check(name)?, rest))
    }

    /// Checks what the host calls an entry of a directory. `None` for `.` and `..`.
    pub(crate) fn of_entry(name: &'a CStr) -> Option<Self> {
        Self::check(name).ok()
    }

    fn check(name: &'a CStr) -> Result<Self> {
        let bytes = name.to_bytes();
        if bytes.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.contains(&b'/') {
            return Err(Errno::EINVAL);
        }
        Ok(Self(name))
    }

    pub(crate) fn as_c_str(self) -> &'a CStr {
        self.0
    }

    pub(crate) fn as_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}

/// The string at the start of `bytes`, up to its NUL, and what follows it.
pub(crate) fn take_string(bytes: &[u8]) -> Result<(&CStr, &[u8])> {
    let string = CStr::from_bytes_until_nul(bytes).map_err(|_| Errno::EINVAL)?;
    let rest = bytes.get(string.to_bytes_with_nul().len()..).unwrap_or_default();
    Ok((string, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_are_names() {
        let long = [b"x".repeat(256), vec![0]].concat();
        let cases: [(&[u8], Errno); 8] = [
            (b"\0", Errno::EINVAL),
            (b".\0", Errno::EINVAL),
            (b"..\0", Errno::EINVAL),
            (b"/\0", Errno::EINVAL),
            (b"a/b\0", Errno::EINVAL),
            (b"../a\0", Errno::EINVAL),
            (b"no-end", Errno::EINVAL),
            (&long, Errno::ENAMETOOLONG),
        ];
        for (bytes, error) in cases {
            assert_eq!(Name::take(bytes).unwrap_err(), error, "{bytes:?}");
        }
        let (name, rest) = Name::take(b"...\0rest").unwrap();
        assert_eq!((name.as_bytes(), rest), (&b"..."[..], &b"rest"[..]));
        assert!(Name::take(&[b"x".repeat(255), vec![0]].concat()).is_ok());
        assert!(Name::take(b"\xff\xfe\0").is_ok(), "any other byte is part of a name");
    }
}
