//! Prints `src/edits/boot_order.lds` anew: `boot_order LOG SYSTEM_MAP VMLINUX`, as README.md says.

use std::fs::{self, File};
use std::io::{self, BufReader};

fn main() -> io::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [log, system_map, kernel] = &arguments[..] else {
        return Err(io::Error::other("usage: boot_order LOG SYSTEM_MAP VMLINUX"));
    };
    let log = BufReader::new(File::open(log)?);
    let order =
        cabana_kernel::boot_order(log, &fs::read_to_string(system_map)?, &fs::read(kernel)?)?;
    print!("{order}");
    Ok(())
}
