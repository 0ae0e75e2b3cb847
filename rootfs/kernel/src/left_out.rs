//! Initcalls that are left out of a finished kernel.
//!
//! Linux calls each of its initialization functions (`include/linux/init.h`) through a table of 32-bit
//! offsets, relative to the place of the offset itself. `System.map` names each place
//! `__initcall__kmod_MODULE__COUNTER_LINE_FUNCTIONLEVEL`. A function is left out by letting its place
//! lead to one that returns 0 and does nothing else.

use std::collections::BTreeMap;

use crate::{Architecture, elf};

/// What every entry's symbol begins with.
const ENTRY: &str = "__initcall__kmod_";

/// The initcalls that the guest kernel does without, one a line, with comments.
pub(crate) const GUEST: &str = include_str!("../config/left-out.initcalls");

/// The function names of a list.
pub(crate) fn parse(list: &str) -> Vec<String> {
    let lines = list.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Leaves `functions` out of a kernel, whose symbols are `system_map`; says in words what is not as it
/// must be.
pub(crate) fn leave_out(
    architecture: Architecture,
    functions: &[String],
    kernel: &mut [u8],
    system_map: &str,
) -> Result<(), String> {
    if functions.is_empty() {
        return Ok(());
    }
    let symbols = Symbols::parse(system_map);
    let name = architecture.nothing();
    let nothing = *symbols.one(name)?;
    for function in functions {
        let entry = symbols.initcall(function)?;
        let place = match architecture {
            Architecture::X86_64 => elf::file_offset(kernel, entry, 4),
            // The file is what lies in memory, from this symbol on.
            Architecture::Aarch64 => {
                entry.checked_sub(*symbols.one("_text")?).map(|offset| offset as usize)
            }
        };
        let place = place.ok_or_else(|| format!("the initcall {function} is not in a segment"))?;
        let offset = kernel
            .get_mut(place..place + 4)
            .ok_or_else(|| format!("the initcall {function} is cut off"))?;
        let present = i32::from_le_bytes([offset[0], offset[1], offset[2], offset[3]]);
        let target = entry.wrapping_add_signed(i64::from(present));
        if !symbols.all(function).contains(&target) {
            return Err(format!("the initcall {function} leads to {target:#x}, not to it"));
        }
        let new = i32::try_from(nothing.wrapping_sub(entry).cast_signed())
            .map_err(|_| format!("{name} is too far from the initcalls"))?;
        offset.copy_from_slice(&new.to_le_bytes());
    }
    Ok(())
}

/// `System.map`: each symbol's addresses; functions of one file alone may share a name.
struct Symbols<'a>(BTreeMap<&'a str, Vec<u64>>);

impl<'a> Symbols<'a> {
    fn parse(system_map: &'a str) -> Self {
        let mut symbols: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        for line in system_map.lines() {
            let mut words = line.split_whitespace();
            let address = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
            if let (Some(address), Some(name)) = (address, words.nth(1)) {
                symbols.entry(name).or_default().push(address);
            }
        }
        Self(symbols)
    }

    fn all(&self, name: &str) -> &[u64] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    fn one(&self, name: &str) -> Result<&u64, String> {
        match self.all(name) {
            [one] => Ok(one),
            found => Err(format!("it has {} symbols {name} in place of one", found.len())),
        }
    }

    /// Where the table's entry for `function` stands.
    fn initcall(&self, function: &str) -> Result<u64, String> {
        let entries = self.0.range(ENTRY..).take_while(|(name, _)| name.starts_with(ENTRY));
        let mut found = entries.filter(|(name, _)| called(name) == Some(function));
        match (found.next(), found.next()) {
            (Some((_, addresses)), None) if addresses.len() == 1 => Ok(addresses[0]),
            (None, _) => Err(format!("it has no initcall {function}")),
            _ => Err(format!("it has several initcalls {function}")),
        }
    }
}

/// The function that an entry's symbol names: what stands between the line and the level.
fn called(entry: &str) -> Option<&str> {
    let numbered = entry.match_indices("__").filter_map(|(at, _)| {
        let rest = entry[at + 2..].trim_start_matches(|c: char| c.is_ascii_digit());
        let rest = rest.strip_prefix('_')?;
        let name = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        (name.len() < rest.len()).then(|| name.strip_prefix('_'))?
    });
    let function = numbered.last()?;
    let levels = ["early", "rootfs", "con", "0", "1", "2", "3", "4", "5", "6", "7"];
    let plain =
        function.strip_suffix('s').filter(|rest| rest.ends_with(|c: char| c.is_ascii_digit()));
    let function = plain.unwrap_or(function);
    levels.iter().find_map(|level| function.strip_suffix(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "\
ffffffff81000100 T x86_op_int_noop
ffffffff81000200 t late_init
ffffffff81000300 t late_init
ffffffff81000400 t other
ffffffff81001000 d __initcall__kmod_slub__617_7314_late_init7
ffffffff81001004 d __initcall__kmod_a__b__1_2_other6s
";

    /// A kernel with one segment: the file's second page at 0x…81001000, with the two entries.
    fn kernel(first_leads_to: u64) -> Vec<u8> {
        let mut file = vec![0; 0x2000];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(32, &64_u64.to_le_bytes());
        put(56, &1_u64.to_le_bytes()[..2]);
        put(64, &1_u32.to_le_bytes());
        for (at, value) in [(8, 0x1000), (16, 0xffff_ffff_8100_1000), (32, 8_u64)] {
            put(64 + at, &value.to_le_bytes());
        }
        let offset = first_leads_to.wrapping_sub(0xffff_ffff_8100_1000) as i32;
        put(0x1000, &offset.to_le_bytes());
        put(0x1004, &(-0xc04_i32).to_le_bytes());
        file
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_entry_of_each_leads_to_nothing() {
        let mut file = kernel(0xffff_ffff_8100_0300);
        leave_out(Architecture::X86_64, &names(&["late_init", "other"]), &mut file, MAP).unwrap();
        assert_eq!(file[0x1000..0x1004], (-0xf00_i32).to_le_bytes());
        assert_eq!(file[0x1004..0x1008], (-0xf04_i32).to_le_bytes());
    }

    #[test]
    fn an_image_has_its_entries_behind_its_first_byte() {
        let map = MAP.replace("x86_op_int_noop", "noop_fsync") + "ffffffff81000000 T _text\n";
        let mut file = kernel(0xffff_ffff_8100_0200);
        leave_out(Architecture::Aarch64, &names(&["late_init"]), &mut file, &map).unwrap();
        assert_eq!(file[0x1000..0x1004], (-0xf00_i32).to_le_bytes());
        let error = leave_out(Architecture::Aarch64, &names(&["late_init"]), &mut file, MAP);
        assert!(error.unwrap_err().contains("noop_fsync"));
    }

    #[test]
    fn what_is_not_as_expected_is_said() {
        let told = |function: &str, target, map: &str| {
            let names = names(&[function]);
            leave_out(Architecture::X86_64, &names, &mut kernel(target), map).unwrap_err()
        };
        let late = 0xffff_ffff_8100_0200;
        assert!(told("missing", late, MAP).contains("no initcall missing"));
        assert!(told("late_init", 0xffff_ffff_8100_0400, MAP).contains("not to it"));
        assert!(told("late_init", late, &MAP.replace("x86_op", "op")).contains("0 symbols"));
        let twice = MAP.replace("a__b__1_2_other6s", "a__b__1_2_late_init6");
        assert!(told("late_init", late, &twice).contains("several"));
        let mut cut = kernel(late);
        cut.truncate(0x1002);
        let names = names(&["late_init"]);
        let error = leave_out(Architecture::X86_64, &names, &mut cut, MAP).unwrap_err();
        assert!(error.contains("cut off"), "{error}");
    }

    #[test]
    fn entries_name_their_functions() {
        assert_eq!(
            called("__initcall__kmod_slub__617_7314_slab_late_init7"),
            Some("slab_late_init")
        );
        assert_eq!(called("__initcall__kmod_a__1_2_b__3_4_c6s"), Some("c"));
        assert_eq!(called("__initcall__kmod_x__1_2_set_cpu_3early"), Some("set_cpu_3"));
        assert_eq!(called("__initcall__kmod_x"), None);
    }

    #[test]
    fn the_guests_list_gives_a_reason_for_each() {
        let functions = parse(GUEST);
        assert!(functions.contains(&"slab_late_init".to_owned()), "{functions:?}");
        for group in GUEST.split("\n\n") {
            assert!(group.starts_with('#'), "no reason: {group}");
        }
    }
}
