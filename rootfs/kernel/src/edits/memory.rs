//! Memory: bookkeeping that is made when it is needed, and what is free is the host's again.

use super::Edit;

pub(super) const EDITS: &[Edit] = &[
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
    // What a device has a 32-bit address for is no concern of any device here, and without a zone for it the zone
    // whose pages wait (below) is all of RAM.
    Edit { file: "arch/x86/Kconfig", from: "	select ZONE_DMA32\n", to: "" },
    // The first two MiB, page 0 of which is no RAM, were left to what never moves, and so the first that gets filled, instead
    // of one more of the large pages that the kernel takes for that.
    Edit {
        file: "mm/mm_init.c",
        from: "\
		__init_single_page(pfn_to_page(pfn), pfn, zone, node);
		__SetPageReserved(pfn_to_page(pfn));
		pgcnt++;
",
        to: "\
		__init_single_page(pfn_to_page(pfn), pfn, zone, node);
		__SetPageReserved(pfn_to_page(pfn));
		if (pageblock_aligned(pfn))
			set_pageblock_migratetype(pfn_to_page(pfn),
						  MIGRATE_MOVABLE);
		pgcnt++;
",
    },
    // The kernel can put off making the `struct page`s of RAM until later in the boot. Here it does so until
    // the RAM is needed, however late: the ceiling of a machine costs neither time nor memory. It begins with
    // 32 MiB of RAM, and takes as much more at a time.
    Edit {
        file: "mm/mm_init.c",
        from: "\
	if ((nr_initialised > PAGES_PER_SECTION) &&
	    (pfn & (PAGES_PER_SECTION - 1)) == 0) {
",
        to: "\
	if (nr_initialised > SZ_32M / PAGE_SIZE - MAX_ORDER_NR_PAGES &&
	    IS_MAX_ORDER_ALIGNED(pfn)) {
",
    },
    // The `struct page`s stand in RAM themselves. Nobody asks for those of the pages that they fill, which would all be made
    // at the start: 64 bytes for each 256 KiB of RAM.
    Edit {
        file: "mm/sparse.c",
        from: "	sparsemap_buf_end = sparsemap_buf + size;\n",
        to: "\
	sparsemap_buf_end = sparsemap_buf + size;
	if (sparsemap_buf)
		memblock_reserved_mark_noinit(__pa(sparsemap_buf), size);
",
    },
    Edit {
        file: "mm/mm_init.c",
        from: "static void __init deferred_free_pages(unsigned long pfn,\n",
        to: "static void __meminit deferred_free_pages(unsigned long pfn,\n",
    },
    Edit {
        file: "mm/mm_init.c",
        from: "static unsigned long __init deferred_init_pages(struct zone *zone,\n",
        to: "static unsigned long __meminit deferred_init_pages(struct zone *zone,\n",
    },
    Edit {
        file: "mm/mm_init.c",
        from: "	return nr_pages > 0;\n}\n",
        to: concat!("	return nr_pages > 0;\n}\n\n", include_str!("later_ram.c")),
    },
    Edit {
        file: "mm/mm_init.c",
        from: "\
		kthread_run(deferred_init_memmap, NODE_DATA(nid), \"pgdatinit%d\", nid);
",
        to: "\
		if (leave_for_later(NODE_DATA(nid)))
			pgdat_init_report_one_done();
		else
			kthread_run(deferred_init_memmap, NODE_DATA(nid),
				    \"pgdatinit%d\", nid);
",
    },
    Edit {
        file: "mm/mm_init.c",
        from: "	static_branch_disable(&deferred_pages);\n",
        to: "	if (!later_zone)\n		static_branch_disable(&deferred_pages);\n",
    },
    Edit {
        file: "mm/internal.h",
        from: "\
bool __init deferred_grow_zone(struct zone *zone, unsigned int order);
#endif /* CONFIG_DEFERRED_STRUCT_PAGE_INIT */
",
        to: "\
bool __init deferred_grow_zone(struct zone *zone, unsigned int order);
bool later_grow_zone(struct zone *zone, unsigned int order);
extern struct zone *later_zone;
extern unsigned long later_pages;
#else
#define later_pages	0UL
#endif /* CONFIG_DEFERRED_STRUCT_PAGE_INIT */
",
    },
    Edit {
        file: "mm/page_alloc.c",
        from: "	return deferred_grow_zone(zone, order);\n",
        to: "\
	if (later_zone)
		return later_grow_zone(zone, order);
	return deferred_grow_zone(zone, order);
",
    },
    // It is free memory for whoever asks, and for the limits that are made of it.
    Edit {
        file: "mm/page_alloc.c",
        from: "\
	unsigned long sum = 0;

	struct zonelist *zonelist = node_zonelist(numa_node_id(), GFP_KERNEL);
",
        to: "\
	unsigned long sum = later_pages;

	struct zonelist *zonelist = node_zonelist(numa_node_id(), GFP_KERNEL);
",
    },
    Edit {
        file: "mm/show_mem.c",
        from: "	available = global_zone_page_state(NR_FREE_PAGES) - totalreserve_pages;\n",
        to: "\
	available = global_zone_page_state(NR_FREE_PAGES) + later_pages -
		totalreserve_pages;
",
    },
    Edit {
        file: "mm/show_mem.c",
        from: "	val->freeram = global_zone_page_state(NR_FREE_PAGES);\n",
        to: "	val->freeram = global_zone_page_state(NR_FREE_PAGES) + later_pages;\n",
    },
    Edit {
        file: "mm/page-writeback.c",
        from: "\
	unsigned long nr_pages = 0;
	int z;

	for (z = 0; z < MAX_NR_ZONES; z++) {
		struct zone *zone = pgdat->node_zones + z;
",
        to: "\
	unsigned long nr_pages = later_pages;
	int z;

	for (z = 0; z < MAX_NR_ZONES; z++) {
		struct zone *zone = pgdat->node_zones + z;
",
    },
    Edit {
        file: "mm/page-writeback.c",
        from: "	x = global_zone_page_state(NR_FREE_PAGES);\n",
        to: "	x = global_zone_page_state(NR_FREE_PAGES) + later_pages;\n",
    },
    // The `struct page`s of a DAX device are made where a file is mapped, 64 at a time, which are a page of their own that
    // has no memory before, and not for all of the root image at the start.
    Edit {
        file: "mm/sparse-vmemmap.c",
        from: "	if (vmemmap_can_optimize(altmap, pgmap))\n		r = vmemmap_populate_compound_pages(",
        to: "\
	if (pgmap && pgmap->later)
		r = 0;
	else if (vmemmap_can_optimize(altmap, pgmap))
		r = vmemmap_populate_compound_pages(",
    },
    Edit {
        file: "include/linux/memremap.h",
        from: "	void *owner;\n	int nr_range;\n",
        to: "\
	void *owner;
	/* Pieces whose struct pages are not made yet; all are if there is none */
	unsigned long *later;
	int nr_range;
",
    },
    Edit {
        file: "include/linux/memremap.h",
        from: "static inline bool pgmap_has_memory_failure(",
        to: "\
void leave_pages_for_later(struct dev_pagemap *pgmap);
int make_later_pages(struct dev_pagemap *pgmap, unsigned long pfn,
		     unsigned long nr_pages);

static inline bool pgmap_has_memory_failure(",
    },
    Edit {
        file: "mm/mm_init.c",
        from: "void __ref memmap_init_zone_device(struct zone *zone,\n",
        to: concat!(
            include_str!("later_devices.c"),
            "\nvoid __ref memmap_init_zone_device(struct zone *zone,\n"
        ),
    },
    Edit {
        file: "mm/mm_init.c",
        from: "	for (pfn = start_pfn; pfn < end_pfn; pfn += pfns_per_compound) {\n",
        to: "\
	for (pfn = start_pfn; pfn < end_pfn && !pgmap->later;
	     pfn += pfns_per_compound) {
",
    },
    Edit {
        file: "drivers/nvdimm/pmem.c",
        from: "		pmem->pgmap.nr_range = 1;\n",
        to: "		pmem->pgmap.nr_range = 1;\n		leave_pages_for_later(&pmem->pgmap);\n",
    },
    Edit {
        file: "drivers/nvdimm/pmem.c",
        from: "		*pfn = phys_to_pfn_t(pmem->phys_addr + offset, pmem->pfn_flags);\n",
        to: "\
		*pfn = phys_to_pfn_t(pmem->phys_addr + offset, pmem->pfn_flags);
	if (pfn && make_later_pages(&pmem->pgmap, pfn_t_to_pfn(*pfn), nr_pages))
		return -ENOMEM;
",
    },
];
