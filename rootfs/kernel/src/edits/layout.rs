//! Each of these spares every machine a large page (2 MiB) that would be nearly empty.

use super::Edit;

pub(super) const EDITS: &[Edit] = &[
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
    // Data that is read-only after the start is written until then, and lies in the midst of what never is. It begins the
    // large page of the data, so that the one before it is the file's, and a large page of the host's too.
    Edit {
        file: "include/asm-generic/vmlinux.lds.h",
        from: "\
#define RO_AFTER_INIT_DATA						\\
	. = ALIGN(8);							\\
",
        to: "\
#ifdef CONFIG_X86_64
#define RO_AFTER_INIT_ALIGN 0x200000
#else
#define RO_AFTER_INIT_ALIGN 8
#endif
#define RO_AFTER_INIT_DATA						\\
	. = ALIGN(RO_AFTER_INIT_ALIGN);					\\
",
    },
    // What a program may see of the kernel where Meltdown is to be feared ends before it.
    Edit {
        file: "arch/x86/kernel/vmlinux.lds.S",
        from: "\
		. = ALIGN(HPAGE_SIZE);				\\
		__end_rodata_hpage_align = .;			\\
		__end_rodata_aligned = .;
",
        to: "\
		. = ALIGN(PAGE_SIZE);				\\
		__end_rodata_hpage_align = .;			\\
		__end_rodata_aligned = __start_ro_after_init;
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
];
