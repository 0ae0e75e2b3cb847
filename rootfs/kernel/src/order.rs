//! The order of the functions in the kernel's text (`edits/boot_order.lds`): the check that the linker kept it, and how
//! it is made anew.

use std::collections::HashSet;
use std::io::{self, BufRead};

use crate::elf;

/// The functions' sections in order, as the linker script has them.
const ORDER: &str = include_str!("edits/boot_order.lds");
/// Those that only run lie within so many bytes of the text's begin: a large page, of which they need two thirds.
const TOGETHER: u64 = 2 << 20;
/// So many of them at least, in per cent. Assembly and what has places of its own in the text stay where they are.
const AT_LEAST: usize = 90;
/// Behind the functions that only run: what is patched begins at another large page.
const APART: &str = ". = ALIGN(0x200000);\n";
/// Tables whose entries begin with the distance to what is patched, and the length of an entry: `struct alt_instr`
/// (`arch/x86/include/asm/alternative.h`), and places of constants that are known at boot (`asm/runtime-const.h`).
const PATCHES: [(&str, &str, usize); 4] = [
    ("__alt_instructions", "__alt_instructions_end", 14),
    ("__start_runtime_shift_d_hash_shift", "__stop_runtime_shift_d_hash_shift", 4),
    ("__start_runtime_ptr_dentry_hashtable", "__stop_runtime_ptr_dentry_hashtable", 4),
    ("__start_runtime_ptr_USER_PTR_MAX", "__stop_runtime_ptr_USER_PTR_MAX", 4),
];

/// Checks that a kernel's functions lie in the order.
pub(crate) fn check(system_map: &str) -> Result<(), String> {
    let text = Text::parse(system_map)?;
    let run = ORDER.split_once(APART).map_or(ORDER, |(run, _)| run);
    let listed: HashSet<_> = run.lines().filter_map(function).collect();
    let end = text.start + TOGETHER;
    let found: Vec<_> = text.functions.iter().filter(|(_, name)| listed.contains(name)).collect();
    let together = found.iter().filter(|(at, _)| *at < end).count();
    if found.is_empty() || together * 100 < found.len() * AT_LEAST {
        let found = found.len();
        return Err(format!(
            "of the {found} functions that run at boot only {together} lie together"
        ));
    }
    Ok(())
}

/// The function of a line of the order.
fn function(line: &str) -> Option<&str> {
    line.strip_prefix("*(.text.")?.strip_suffix(')').filter(|name| !name.starts_with("unlikely."))
}

/// Makes the order anew: from QEMU's log of the instructions that it translated (`-d in_asm`), the kernel that it ran,
/// and that kernel's symbols.
pub fn boot_order(log: impl BufRead, system_map: &str, kernel: &[u8]) -> io::Result<String> {
    let text = Text::parse(system_map).map_err(io::Error::other)?;
    let mut runs = Vec::new();
    let mut seen = HashSet::new();
    for line in log.lines() {
        let line = line?;
        let address =
            line.strip_prefix("0x").and_then(|rest| rest.split_once(':')).map(|(at, _)| at);
        let address = address.and_then(|address| u64::from_str_radix(address, 16).ok());
        if let Some(function) = address.and_then(|address| text.at(address))
            && seen.insert(function)
        {
            runs.push(function);
        }
    }
    let patched = text.patched(kernel).map_err(io::Error::other)?;
    let (both, only): (Vec<_>, Vec<_>) = runs.into_iter().partition(|at| patched.contains(at));
    let mut still: Vec<_> = patched.into_iter().filter(|at| !seen.contains(at)).collect();
    still.sort_unstable();
    let mut named = HashSet::new();
    still.extend(both);
    let mut lines = |functions: Vec<usize>| -> String {
        let sections = functions.into_iter().map(|at| section(text.functions[at].1));
        sections.filter(|line| named.insert(line.clone())).collect()
    };
    Ok(lines(only) + APART + &lines(still))
}

/// The linker's line for a function. The compiler puts the unlikely part of one into a section of its own.
fn section(function: &str) -> String {
    match function.strip_suffix(".cold") {
        Some(function) => format!("*(.text.unlikely.{function})\n"),
        None => format!("*(.text.{function})\n"),
    }
}

/// A kernel's text, without that of its initialization, which is thrown away.
struct Text<'a> {
    start: u64,
    end: u64,
    /// Its functions by address.
    functions: Vec<(u64, &'a str)>,
    symbols: Vec<(u64, &'a str)>,
}

impl<'a> Text<'a> {
    fn parse(system_map: &'a str) -> Result<Self, String> {
        let (mut symbols, mut functions) = (Vec::new(), Vec::new());
        for line in system_map.lines() {
            let mut words = line.split_whitespace();
            let address = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
            if let (Some(address), Some(kind), Some(name)) = (address, words.next(), words.next()) {
                symbols.push((address, name));
                if kind.eq_ignore_ascii_case("t") {
                    functions.push((address, name));
                }
            }
        }
        let mut text = Self { start: 0, end: 0, functions, symbols };
        (text.start, text.end) = (text.symbol("_stext")?, text.symbol("_etext")?);
        let (start, end) = (text.start, text.end);
        text.functions.retain(|(at, _)| (start..end).contains(at));
        text.functions.sort_by_key(|(at, _)| *at);
        Ok(text)
    }

    fn symbol(&self, name: &str) -> Result<u64, String> {
        let found = self.symbols.iter().find(|(_, symbol)| *symbol == name);
        found.map(|(at, _)| *at).ok_or_else(|| format!("it has no symbol {name}"))
    }

    /// The function in which an address lies, as its place in `functions`.
    fn at(&self, address: u64) -> Option<usize> {
        if !(self.start..self.end).contains(&address) {
            return None;
        }
        self.functions.partition_point(|(at, _)| *at <= address).checked_sub(1)
    }

    /// The functions with places that are patched at boot.
    fn patched(&self, kernel: &[u8]) -> Result<HashSet<usize>, String> {
        let mut found = HashSet::new();
        let mut entries = Vec::new();
        for (start, end, len) in PATCHES {
            entries.extend((self.symbol(start)?..self.symbol(end)?).step_by(len));
        }
        for entry in entries {
            let offset = elf::file_offset(kernel, entry, 4);
            let bytes = offset.and_then(|at| kernel.get(at..at + 4));
            let bytes = bytes.ok_or("the table of patches is not in the file")?;
            let distance = i32::from_le_bytes(bytes.try_into().expect("four bytes"));
            let place = entry.wrapping_add_signed(distance.into());
            found.extend(self.at(place));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;

    /// A map of a kernel whose functions are `listed`, each `apart` bytes from the one before.
    fn map(apart: u64) -> String {
        let run = ORDER.split_once(APART).unwrap().0;
        let functions = run.lines().filter_map(function).enumerate();
        let lines =
            functions.map(|(at, name)| format!("{:x} t {name}\n", BASE + at as u64 * apart));
        format!("{BASE:x} T _stext\n{:x} T _etext\n", BASE + (64 << 20))
            + &lines.collect::<String>()
    }

    #[test]
    fn an_order_that_was_lost_is_said() {
        check(&map(64)).unwrap();
        let scattered = check(&map(4096)).unwrap_err();
        assert!(scattered.contains("lie together"), "{scattered}");
        let strange = map(64).replace(" t ", " d ");
        assert!(check(&strange).unwrap_err().contains("of the 0 functions"));
        assert!(check("").unwrap_err().contains("_stext"));
    }

    #[test]
    fn what_runs_and_what_is_patched_come_in_order() {
        let map = "\
ffffffff81000000 T _stext
ffffffff81000000 T start
ffffffff81000100 t patched_alone
ffffffff81000200 t idle
ffffffff81000300 t patched_and_runs
ffffffff81000400 t late.part.0
ffffffff81000500 t late.cold
ffffffff81000600 T _etext
ffffffff81000600 T initialization
ffffffff81000800 D __alt_instructions
ffffffff8100081c D __alt_instructions_end
ffffffff81000820 D __start_runtime_shift_d_hash_shift
ffffffff81000820 D __stop_runtime_shift_d_hash_shift
ffffffff81000820 D __start_runtime_ptr_dentry_hashtable
ffffffff81000824 D __stop_runtime_ptr_dentry_hashtable
ffffffff81000824 D __start_runtime_ptr_USER_PTR_MAX
ffffffff81000824 D __stop_runtime_ptr_USER_PTR_MAX
";
        // One segment that holds all of it.
        let mut kernel = vec![0; 0x1000];
        let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
        put(32, &64_u64.to_le_bytes());
        put(56, &1_u16.to_le_bytes());
        put(64, &1_u32.to_le_bytes());
        for (at, value) in [(8, 0), (16, BASE), (32, 0x1000_u64)] {
            put(64 + at, &value.to_le_bytes());
        }
        for (entry, place) in [(0x800, 0x110), (0x80e, 0x120), (0x820, 0x310_i32)] {
            put(entry as usize, &(place - entry).to_le_bytes());
        }
        let log = "\
----------------
IN:
0xffffffff81000404:  nopl     0x0(%rax)
0xffffffff81000302:  ret
0xffffffff81000500:  ret
0xffffffff81000610:  ret
0xffffffff81000410:  ret
";
        let order = boot_order(log.as_bytes(), map, &kernel).unwrap();
        let lines = [
            "*(.text.late.part.0)",
            "*(.text.unlikely.late)",
            ". = ALIGN(0x200000);",
            "*(.text.patched_alone)",
            "*(.text.patched_and_runs)",
        ];
        assert_eq!(order.lines().collect::<Vec<_>>(), lines);
        let cut = boot_order(log.as_bytes(), map, &kernel[..0x700]);
        assert!(cut.unwrap_err().to_string().contains("not in the file"));
    }
}
