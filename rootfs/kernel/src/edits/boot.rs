//! Less work at boot.

use super::Edit;

pub(super) const EDITS: &[Edit] = &[
    // Each word of the command line is compared with the name of each parameter, and that ten times: once for each level
    // of initcalls and before. Most names differ in their first letter, so the word's length is not asked for first.
    Edit {
        file: "kernel/params.c",
        from: "	return parameqn(a, b, strlen(a)+1);\n",
        to: "\
	while (*a && dash2underscore(*a) == dash2underscore(*b)) {
		a++;
		b++;
	}
	return dash2underscore(*a) == dash2underscore(*b);
",
    },
    // Most levels of initcalls have no parameter.
    Edit {
        file: "init/main.c",
        from: "	parse_args(initcall_level_names[level],\n",
        to: "\
	const struct kernel_param *param = __start___param;

	while (param < __stop___param && param->level != level)
		param++;
	if (param < __stop___param)
		parse_args(initcall_level_names[level],
",
    },
    Edit {
        file: "init/main.c",
        from: "		int n = strlen(p->str);\n		if (parameqn(line, p->str, n)) {\n",
        to: "\
		int n = *p->str == *line ? strlen(p->str) : 0;
		if (n && parameqn(line, p->str, n)) {
",
    },
    // Behind the end of RAM a new page table is empty, and need not be emptied entry by entry, each after three searches of
    // the memory map.
    Edit {
        file: "arch/x86/mm/init_64.c",
        from: "			if (!after_bootmem &&\n			    !e820__mapped_any(paddr & PMD_MASK,",
        to: "			if (false &&\n			    !e820__mapped_any(paddr & PMD_MASK,",
    },
    Edit {
        file: "arch/x86/mm/init_64.c",
        from: "			if (!after_bootmem &&\n			    !e820__mapped_any(paddr & PUD_MASK,",
        to: "			if (false &&\n			    !e820__mapped_any(paddr & PUD_MASK,",
    },
    // An alternative that the processor does not need leaves the instructions as they are. To decode them, to make one
    // of the NOPs behind them, and to write that, spares nobody anything, and a page that is written is the file's no more.
    Edit {
        file: "arch/x86/kernel/alternative.c",
        from: "\
			memcpy(insn_buff, instr, a->instrlen);
			optimize_nops(instr, insn_buff, a->instrlen);
			text_poke_early(instr, insn_buff, a->instrlen);
			continue;
",
        to: "			continue;\n",
    },
    // Calls through a pointer that hardly ever changes are patched where they stand, 900 of them at boot, most in hooks of
    // security modules, and the pages that they are in are the file's no more. Patched where each such pointer has its jump
    // they are a few pages, and a jump more each time.
    Edit {
        file: "arch/x86/Kconfig",
        from: "	select HAVE_STATIC_CALL_INLINE		if HAVE_OBJTOOL\n",
        to: "",
    },
    // Of the identifications of packets, which are random at first, there are as few as the kernel allows: the host's
    // sockets give packets their own.
    Edit {
        file: "net/ipv4/route.c",
        from: "					      256*1024);\n\n	ip_idents = idents_hash;\n",
        to: "					      2048);\n\n	ip_idents = idents_hash;\n",
    },
    // The first block that a file system of ext4's gives out brought along the bitmaps of all groups whose metadata lie
    // together, so that a disk reads them at once: 128 of them on a machine's disk. An unused group's is made and not read, and
    // any other is in the host's page cache.
    Edit {
        file: "fs/ext4/mballoc.c",
        from: "		sbi->s_mb_prefetch *= 8; /* 8 prefetch IOs in flight at most */\n",
        to: "		sbi->s_mb_prefetch = 4;\n",
    },
    // What the kernel needed at its start alone is given back as it is. To fill it with a pattern first finds mistakes of
    // the kernel's, and writes to 1.6 MiB.
    Edit {
        file: "include/linux/poison.h",
        from: "#define POISON_FREE_INITMEM	0xcc\n",
        to: "#define POISON_FREE_INITMEM	-1\n",
    },
    // No machine has expansion ROMs, which would be looked for in 48 pages.
    Edit {
        file: "arch/x86/kernel/x86_init.c",
        from: "		.probe_roms		= probe_roms,\n",
        to: "		.probe_roms		= x86_init_noop,\n",
    },
];
