//! Fewer exits to the VMM at boot.

use super::Edit;

pub(super) const EDITS: &[Edit] = &[
    // An entry of the I/O APIC is written only if that changes it, and not read: nobody but the kernel writes it. After a
    // reset all are masked. At boot each would be read, masked again, and written three times for its device.
    Edit {
        file: "arch/x86/kernel/apic/io_apic.c",
        from: "\
static void io_apic_write(unsigned int apic, unsigned int reg,
			  unsigned int value)
{
	struct io_apic __iomem *io_apic = io_apic_base(apic);

",
        to: "\
/* What a word of an entry of the first I/O APIC is, but for IO_APIC_RESET */
static u32 *io_apic_known(unsigned int apic, unsigned int reg)
{
	static u32 words[2 * 24];

	if (apic || reg < 0x10 || reg >= 0x10 + ARRAY_SIZE(words))
		return NULL;
	return &words[reg - 0x10];
}

/* A masked entry, its low word first */
#define IO_APIC_RESET(reg)	((reg) & 1 ? 0 : 0x10000)

static void io_apic_write(unsigned int apic, unsigned int reg,
			  unsigned int value)
{
	struct io_apic __iomem *io_apic = io_apic_base(apic);
	u32 *known = io_apic_known(apic, reg);

	if (known && *known == (value ^ IO_APIC_RESET(reg)))
		return;
	if (known)
		*known = value ^ IO_APIC_RESET(reg);
",
    },
    Edit {
        file: "arch/x86/kernel/apic/io_apic.c",
        from: "\
	entry.w1 = io_apic_read(apic, 0x10 + 2 * pin);
	entry.w2 = io_apic_read(apic, 0x11 + 2 * pin);

	return entry;
",
        to: "\
	u32 *known = io_apic_known(apic, 0x10 + 2 * pin);

	if (known) {
		entry.w1 = known[0] ^ IO_APIC_RESET(0);
		entry.w2 = known[1];
		return entry;
	}
	entry.w1 = io_apic_read(apic, 0x10 + 2 * pin);
	entry.w2 = io_apic_read(apic, 0x11 + 2 * pin);

	return entry;
",
    },
    // The last leaf of a range is asked for once, and not for each of the features that stand in the range.
    Edit {
        file: "arch/x86/kernel/cpu/scattered.c",
        from: "		max_level = cpuid_eax(cb->level & 0xffff0000);\n",
        to: "\
		if (cb == cpuid_bits ||
		    ((cb[-1].level ^ cb->level) & 0xffff0000))
			max_level = cpuid_eax(cb->level & 0xffff0000);
",
    },
    // A device of Cabana's takes a queue as devices of the legacy interface do, by one write of its place in place of
    // eight; the kernel lays out all of its queues as that says.
    Edit {
        file: "drivers/virtio/virtio_mmio.c",
        from: "	/* Activate the queue */\n",
        to: "\
	/* Activate the queue */
	if (vdev->id.vendor == 0x4e424143 && vm_dev->version == 2 &&
	    virtqueue_get_vring_size(vq) == num) {
		writel(virtqueue_get_desc_addr(vq) >> PAGE_SHIFT,
		       vm_dev->base + VIRTIO_MMIO_QUEUE_PFN);
		return vq;
	}
",
    },
];
