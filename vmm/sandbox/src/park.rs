//! Memory of a machine that stands still, put into a file: what the guest wrote is written there and mapped from
//! there again, copy on write, so that the host may have the memory and the guest finds all of it.

use std::fs::File;
use std::io;

use cabana_machine::MachineError;
use cabana_memory::{GuestAddress, GuestRam};
use cabana_os::own_blocks;
use cabana_snapshot::write_nonzero;

use crate::Error;
use crate::machine::Vmm;

/// Memory is put away in blocks of so many bytes: each that is not beside another one costs a mapping.
const BLOCK: usize = 64 << 10;

impl Vmm {
    /// Puts the guest's memory into `file`, which is as long as that (`MachineConfig::memory`), has only holes, and
    /// is written to by nobody else, while the machine is [paused](Vmm::pause). Pages come back as the guest
    /// touches them. If it fails, memory that is not in the file yet stays where it is.
    pub fn park(&self, file: &File) -> Result<(), Error> {
        let board = self.board().ok_or(Error::Stopped)?;
        // Devices write to memory too.
        let frozen = board.freeze();
        park(frozen.ram(), file)
    }
}

fn park(ram: &GuestRam, file: &File) -> Result<(), Error> {
    let mut begin = 0;
    for piece in ram.slots() {
        let host = piece.host as usize;
        let blocks = own_blocks(host..host + piece.len, BLOCK);
        for block in blocks.map_err(Error::host("the list of memory pages"))? {
            let (offset, len) = (block.start - host, block.len());
            let (guest, at) = (GuestAddress(piece.guest.0 + offset as u64), begin + offset as u64);
            let written = write_nonzero(file, at, len as u64, |offset, bytes| {
                ram.read_bytes(GuestAddress(guest.0 + offset), bytes).map_err(io::Error::other)
            });
            written.map_err(Error::host("a file for memory"))?;
            ram.map_file(guest, len, file, at).map_err(MachineError::Memory)?;
        }
        // Now all that there is to lose is in files; what was only read from them is no longer needed either.
        ram.discard(piece.guest, piece.len).map_err(MachineError::Memory)?;
        begin += piece.len as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    #[test]
    fn memory_is_the_same_afterwards_and_the_files_to_write_on() {
        if own_blocks(0..0, 4096).is_err() {
            return println!("skipped: this system does not tell which memory is a process's own");
        }
        let ram = GuestRam::new(&[(GuestAddress(0), 4 << 20), (GuestAddress(1 << 30), 1 << 20)]);
        let ram = ram.unwrap();
        let kernel = tempfile::tempfile().unwrap();
        kernel.set_len(1 << 20).unwrap();
        ram.map_file(GuestAddress(1 << 20), 1 << 20, &kernel, 0).unwrap();
        let places = [0, 5 * PAGE + 1, (1 << 20) + 7, (3 << 20) - 1, (1 << 30) + 3 * PAGE];
        for round in 1..4_u8 {
            for at in places {
                let next: u8 = ram.read::<u8>(GuestAddress(at)).unwrap() + 1;
                assert_eq!(next, round);
                ram.write(GuestAddress(at), next).unwrap();
            }
            let file = tempfile::tempfile().unwrap();
            file.set_len(ram.size()).unwrap();
            park(&ram, &file).unwrap();
            for piece in ram.slots() {
                let host = piece.host as usize;
                assert_eq!(own_blocks(host..host + piece.len, 4096).unwrap(), [], "round {round}");
            }
        }
        let kept = places.map(|at| ram.read::<u8>(GuestAddress(at)).unwrap());
        assert_eq!(kept, [3; 5]);
        assert_eq!(ram.read::<u8>(GuestAddress(2 * PAGE)).unwrap(), 0);
    }

    #[test]
    fn what_a_full_disk_does_not_take_stays() {
        let Ok(full) = File::options().write(true).open("/dev/full") else {
            return println!("skipped: this system has no disk that is always full");
        };
        let ram = GuestRam::new(&[(GuestAddress(0), 1 << 20)]).unwrap();
        ram.write(GuestAddress(12), 7u8).unwrap();
        assert!(park(&ram, &full).is_err());
        assert_eq!(ram.read::<u8>(GuestAddress(12)).unwrap(), 7);
    }
}
