//! The check that a kernel is an arm64 `Image` (`Documentation/arch/arm64/booting.rst`, "Call the kernel image").

/// `magic` of the header, and where it stands.
const MAGIC: (usize, &[u8]) = (0x38, b"ARM\x64");

/// Checks that the file has the header of an arm64 kernel.
pub(crate) fn check(file: &[u8]) -> Result<(), String> {
    let (at, magic) = MAGIC;
    let found = file.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if found { Ok(()) } else { Err("it is no arm64 Image".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_header() {
        let mut file = vec![0; 64];
        assert!(check(&file).unwrap_err().contains("no arm64 Image"));
        file[0x38..0x3c].copy_from_slice(b"ARM\x64");
        check(&file).unwrap();
        assert!(check(&file[..0x3a]).is_err());
    }
}
