//! What a VMM takes beside its guest's RAM.
//!
//! Counted is the proportional set size (PSS) of its process, of which each page counts by its share:
//! anonymous memory, its program, libraries and stacks. Guest RAM is left out, with whatever files
//! are mapped into it; so is the guest's root image, a file that all machines share through the
//! page cache. What the kernel keeps for a VM (page tables, KVM's structures) is in nobody's PSS.

use std::fs;
use std::path::PathBuf;

use crate::Error;

/// A root image's file name ends so.
const IMAGE_SUFFIX: &str = ".erofs";

/// Bytes in a KiB and KiB in a MiB.
const KIB: u64 = 1024;

/// A process's memory by whom it is for, PSS in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Footprint {
    /// The VMM itself.
    pub vmm: f64,
    /// Guest RAM that has been touched.
    pub guest_ram: f64,
    /// The guest's root image, mapped from its file.
    pub image: f64,
}

/// One entry of `/proc/PID/smaps`.
#[derive(Clone, Debug, Default)]
struct Area {
    start: u64,
    end: u64,
    path: String,
    pss_kib: u64,
}

/// Looks at a VMM whose guest has this much RAM.
pub fn footprint(process: u32, ram_bytes: u64) -> Result<Footprint, Error> {
    let path = PathBuf::from(format!("/proc/{process}/smaps"));
    let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
    split(&areas(&text), ram_bytes).ok_or_else(|| {
        let why = format!("no mappings side by side make {ram_bytes} bytes of guest RAM");
        Error::Content { path, why }
    })
}

/// The proportional set size of a process, by its number or `self`, in MiB; guest RAM is in it.
pub fn pss(process: &str) -> Result<f64, Error> {
    let path = PathBuf::from(format!("/proc/{process}/smaps_rollup"));
    let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    let why = || "it has no proportional set size".to_owned();
    Ok(kib.ok_or_else(|| Error::Content { path, why: why() })? / KIB as f64)
}

fn areas(text: &str) -> Vec<Area> {
    let mut areas: Vec<Area> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if let Some((start, end)) = first.split_once('-').and_then(|(start, end)| {
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        }) {
            let path = words.skip(4).collect::<Vec<_>>().join(" ");
            areas.push(Area { start, end, path, pss_kib: 0 });
        } else if first == "Pss:" {
            let kib = words.next().and_then(|kib| kib.parse().ok());
            if let (Some(area), Some(kib)) = (areas.last_mut(), kib) {
                area.pss_kib = kib;
            }
        }
    }
    areas
}

/// Guest RAM is the run of adjacent areas, around the largest, of exactly its size: a kernel that is
/// mapped into it makes several areas of one.
fn split(areas: &[Area], ram_bytes: u64) -> Option<Footprint> {
    let ram = (0..areas.len()).find_map(|first| {
        let mut len = 0;
        let mut previous_end = areas[first].start;
        for (index, area) in areas.iter().enumerate().skip(first) {
            len += area.end - area.start;
            if area.start != previous_end || len > ram_bytes {
                return None;
            }
            if len == ram_bytes {
                return Some(first..=index);
            }
            previous_end = area.end;
        }
        None
    })?;
    let mut kib = [0; 3];
    for (index, area) in areas.iter().enumerate() {
        let for_whom = if ram.contains(&index) {
            1
        } else if area.path.ends_with(IMAGE_SUFFIX) {
            2
        } else {
            0
        };
        kib[for_whom] += area.pss_kib;
    }
    let [vmm, guest_ram, image] = kib.map(|kib| kib as f64 / KIB as f64);
    Some(Footprint { vmm, guest_ram, image })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
100000-200000 rw-p 00000000 00:00 0 \nPss:  1024 kB\nPss_Dirty: 7 kB\n\
200000-300000 rw-p 00100000 fe:00 77 /store/vmlinux\nPss:  512 kB\n\
300000-500000 rw-p 00000000 00:00 0 \nPss:  256 kB\n\
600000-700000 r--s 00000000 fe:00 78 /store/root.erofs\nPss:  2048 kB\n\
700000-800000 r-xp 00000000 fe:00 79 /bin/a b\nPss:  3072 kB\n";

    #[test]
    fn guest_ram_with_a_kernel_in_it_and_the_image_are_not_the_vmms() {
        let footprint = split(&areas(SMAPS), 0x40_0000).unwrap();
        assert_eq!(footprint, Footprint { vmm: 3.0, guest_ram: 1.75, image: 2.0 });
    }

    #[test]
    fn ram_that_is_not_there_is_not_made_up() {
        assert_eq!(split(&areas(SMAPS), 0x50_0000), None);
        assert_eq!(areas(SMAPS)[4].path, "/bin/a b");
    }

    #[test]
    fn the_kernels_own_words_are_understood() {
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let areas = areas(&text);
        assert!(areas.len() > 5 && areas.iter().any(|area| area.pss_kib > 0));
    }
}
