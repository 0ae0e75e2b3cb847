//! Changes to the kernel's source for what no option says. Each one is small, has a reason, and stops
//! the build when the source no longer has the text that it replaces.

use std::fs;
use std::path::Path;

use crate::Error;

/// A text that stands once in a file, and what takes its place.
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

/// The changes. The first three spare every machine a large page (2 MiB) each that would be nearly empty.
const EDITS: [Edit; 5] = [
    // Data that an encrypted guest shares with its host begins a large page of its own, in every kernel.
    // Without memory encryption it can end the data like any other.
    Edit {
        file: "arch/x86/kernel/vmlinux.lds.S",
        from: "\
#define BSS_DECRYPTED						\\
	. = ALIGN(PMD_SIZE);					\\
	__start_bss_decrypted = .;				\\
	*(.bss..decrypted);					\\
	. = ALIGN(PAGE_SIZE);					\\
	__start_bss_decrypted_unused = .;			\\
	. = ALIGN(PMD_SIZE);					\\
",
        to: "\
#define BSS_DECRYPTED						\\
	. = ALIGN(PAGE_SIZE);					\\
	__start_bss_decrypted = .;				\\
	*(.bss..decrypted);					\\
	. = ALIGN(PAGE_SIZE);					\\
	__start_bss_decrypted_unused = .;			\\
",
    },
    // What lies between read-only data and data would be free memory. Left alone, the read-only data
    // stays what it is in the file, which all machines share.
    Edit {
        file: "arch/x86/mm/init_64.c",
        from: "\
	free_kernel_image_pages(\"unused kernel image (rodata/data gap)\",
				(void *)rodata_end, (void *)_sdata);
",
        to: "	(void)rodata_end;\n",
    },
    // A few bytes of bookkeeping are put into the last page of the section (128 MiB) that holds the
    // kernel's data, so that sections of RAM could be removed later. No section of RAM is.
    Edit {
        file: "mm/sparse.c",
        from: "\
	goal = pgdat_to_phys(pgdat) & (PAGE_SECTION_MASK << PAGE_SHIFT);
	limit = goal + (1UL << PA_SECTION_SHIFT);
",
        to: "\
	goal = 0;
	limit = MEMBLOCK_ALLOC_ACCESSIBLE;
",
    },
    // What a machine frees is the host's again a second later and at once, not over half a minute: a
    // sandbox works in bursts, and telling the host of a gigabyte takes eight messages.
    Edit {
        file: "mm/page_reporting.c",
        from: "#define PAGE_REPORTING_DELAY	(2 * HZ)\n",
        to: "#define PAGE_REPORTING_DELAY	HZ\n",
    },
    Edit {
        file: "mm/page_reporting.c",
        from: "	budget = DIV_ROUND_UP(area->nr_free, PAGE_REPORTING_CAPACITY * 16);\n",
        to: "	budget = DIV_ROUND_UP(area->nr_free, PAGE_REPORTING_CAPACITY);\n",
    },
];

/// All that the changes are made of.
pub(crate) fn texts() -> impl Iterator<Item = &'static str> {
    EDITS.iter().flat_map(|edit| [edit.file, edit.from, edit.to])
}

/// Makes the changes in the unpacked source.
pub(crate) fn apply(root: &Path) -> Result<(), Error> {
    EDITS.iter().try_for_each(|edit| edit.apply(root))
}

impl Edit {
    fn apply(&self, root: &Path) -> Result<(), Error> {
        let path = root.join(self.file);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let count = text.matches(self.from).count();
        if count != 1 {
            let reason = format!(
                "the text that Cabana changes in it stands there {count} times in place of once"
            );
            return Err(Error::BadResult { path, reason });
        }
        let changed = text.replace(self.from, self.to);
        fs::write(&path, changed).map_err(Error::io("write", &path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDIT: Edit = Edit { file: "a", from: "old\n", to: "new\n" };

    #[test]
    fn a_text_is_replaced_once_or_the_build_stops() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "1\nold\n2\n").unwrap();
        EDIT.apply(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\nnew\n2\n");
        for text in ["1\n2\n", "old\nold\n"] {
            fs::write(&path, text).unwrap();
            let error = EDIT.apply(folder.path()).unwrap_err();
            assert!(matches!(error, Error::BadResult { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
