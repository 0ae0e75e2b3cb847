/* Pages of a piece: their struct pages are a page */
#define LATER_PIECE	(PAGE_SIZE / sizeof(struct page))

/* Before the pages of a device with one range are added */
void leave_pages_for_later(struct dev_pagemap *pgmap)
{
	unsigned int pieces = DIV_ROUND_UP(PHYS_PFN(range_len(&pgmap->range)),
					   LATER_PIECE);

	/* On arm64 nobody has tried it */
	if (!IS_ENABLED(CONFIG_X86) ||
	    !IS_ALIGNED(PHYS_PFN(pgmap->range.start), LATER_PIECE))
		return;
	pgmap->later = bitmap_alloc(pieces, GFP_KERNEL);
	if (pgmap->later)
		bitmap_fill(pgmap->later, pieces);
}

/* Makes the struct pages of a range that is about to be mapped, and the memory that they are in */
int make_later_pages(struct dev_pagemap *pgmap, unsigned long pfn,
		     unsigned long nr_pages)
{
	static DEFINE_MUTEX(lock);
	unsigned long first = PHYS_PFN(pgmap->range.start);
	unsigned long last = PHYS_PFN(pgmap->range.end);
	unsigned long piece, at, start, end;
	int error = 0;

	if (!pgmap->later || !nr_pages || pfn < first || pfn > last)
		return 0;
	end = min(pfn + nr_pages - 1, last) - first;
	for (piece = (pfn - first) / LATER_PIECE;
	     piece <= end / LATER_PIECE && !error; piece++) {
		if (!test_bit_acquire(piece, pgmap->later))
			continue;
		mutex_lock(&lock);
		if (test_bit(piece, pgmap->later)) {
			at = first + piece * LATER_PIECE;
			start = (unsigned long)pfn_to_page(at);
			error = vmemmap_populate_basepages(start,
					start + PAGE_SIZE, pfn_to_nid(at), NULL);
			for (pfn = at; !error && pfn < at + LATER_PIECE; pfn++)
				__init_zone_device_page(pfn_to_page(pfn), pfn,
							ZONE_DEVICE, pfn_to_nid(pfn),
							pgmap);
			if (!error)
				clear_bit_unlock(piece, pgmap->later);
		}
		mutex_unlock(&lock);
	}
	return error;
}
