/* Pages of a piece: their struct pages are a page */
#define LATER_PIECE	(PAGE_SIZE / sizeof(struct page))

static void leave_pages_for_later(struct dev_pagemap *pgmap,
				  unsigned long nr_pages)
{
	unsigned int pieces = DIV_ROUND_UP(nr_pages, LATER_PIECE);

	pgmap->later = bitmap_alloc(pieces, GFP_KERNEL);
	if (pgmap->later)
		bitmap_fill(pgmap->later, pieces);
}

/* Makes the struct pages of a range that is about to be mapped */
void make_later_pages(struct dev_pagemap *pgmap, unsigned long pfn,
		      unsigned long nr_pages)
{
	static DEFINE_SPINLOCK(lock);
	unsigned long first = PHYS_PFN(pgmap->range.start);
	unsigned long last = PHYS_PFN(pgmap->range.end);
	unsigned long piece, at, end;

	if (!pgmap->later || !nr_pages || pfn < first || pfn > last)
		return;
	end = min(pfn + nr_pages - 1, last) - first;
	for (piece = (pfn - first) / LATER_PIECE; piece <= end / LATER_PIECE;
	     piece++) {
		if (!test_bit_acquire(piece, pgmap->later))
			continue;
		spin_lock(&lock);
		if (test_bit(piece, pgmap->later)) {
			at = first + piece * LATER_PIECE;
			for (pfn = at; pfn < at + LATER_PIECE && pfn <= last; pfn++)
				__init_zone_device_page(pfn_to_page(pfn), pfn,
							ZONE_DEVICE, pfn_to_nid(pfn),
							pgmap);
			clear_bit_unlock(piece, pgmap->later);
		}
		spin_unlock(&lock);
	}
}
