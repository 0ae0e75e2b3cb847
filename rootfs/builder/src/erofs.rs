//! The tree as a read-only EROFS image that a guest maps into its memory.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::BuildError;
use crate::error::Context;
use crate::process::Tool;

/// Writes the image.
pub(crate) const MKFS: Tool = Tool { name: "mkfs.erofs", package: "erofs-utils" };

/// The image's file name in the artifact.
pub const ROOT: &str = "root.erofs";

/// Uncompressed, and no file's tail beside its inode: DAX maps only the flat plain layout, and a
/// file of another layout is quietly read through the guest's page cache.
pub(crate) const OPTIONS: &[&str] = &["-E", "noinline_data", "--quiet"];

/// Sizes of persistent-memory regions are multiples of this.
const ALIGNMENT: u64 = 2 << 20;

/// Writes the tree at `root` to `image`.
///
/// Times later than `epoch` become `epoch`; the others stay, since Python compares them with those
/// in its compiled files. `inputs` becomes the file system's UUID.
pub(crate) fn write(
    root: &Path,
    image: &Path,
    epoch: i64,
    inputs: &str,
    cancel: &AtomicBool,
) -> Result<(), BuildError> {
    let mut command = MKFS.command();
    command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    command.args(OPTIONS).args(["-U", &uuid(inputs)]).arg(image).arg(root);
    let room = image.parent().unwrap_or(image);
    MKFS.run(command, room, cancel, &mut |_| {})?;

    let file = File::options().write(true).open(image).context("open", image)?;
    let size = file.metadata().context("look at", image)?.len();
    file.set_len(size.next_multiple_of(ALIGNMENT)).context("write", image)
}

/// A UUID of version 8 (RFC 9562 §5.8: any content) out of a hash in hexadecimal.
fn uuid(hash: &str) -> String {
    let part = |from: usize, to: usize| hash.get(from..to).unwrap_or_default();
    format!("{}-{}-8{}-8{}-{}", part(0, 8), part(8, 12), part(12, 15), part(15, 18), part(18, 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_becomes_a_uuid() {
        let hash = "0123456789abcdef0123456789abcdef";
        assert_eq!(uuid(hash), "01234567-89ab-8cde-8f01-23456789abcd");
    }
}
