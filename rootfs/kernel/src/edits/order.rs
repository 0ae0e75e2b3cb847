//! What runs at boot lies side by side: a page of the kernel's text costs each machine a fault when it is first touched, and
//! a copy when something in it is patched.

use super::Edit;

pub(super) const EDITS: &[Edit] = &[
    // Each function gets a section of its own, so that the linker can put it anywhere.
    Edit {
        file: "arch/x86/Makefile",
        from: "        KBUILD_CFLAGS += -mcmodel=kernel\n",
        to: "\
        KBUILD_CFLAGS += -mcmodel=kernel
        KBUILD_CFLAGS_KERNEL += -ffunction-sections
",
    },
    Edit {
        file: "include/asm-generic/vmlinux.lds.h",
        from: "#define TEXT_MAIN .text\n",
        to: "#define TEXT_MAIN .text .text.[0-9a-zA-Z_]*\n",
    },
    // Names that another revision does not have are passed over. What the compiler takes for unlikely stays apart
    // from the rest, as it would without sections.
    Edit {
        file: "arch/x86/kernel/vmlinux.lds.S",
        from: "		TEXT_TEXT\n",
        to: concat!(
            include_str!("boot_order.lds"),
            "		*(.text.unlikely .text.unlikely.*)\n		TEXT_TEXT\n"
        ),
    },
];
