/*
 * Free RAM whose struct pages are made when somebody asks for memory, in the
 * order in which it lies. The zone ends before it.
 */
static struct later_range {
	unsigned long start, end;
} later_ranges[32];
static unsigned int later_next, later_count;
struct zone *later_zone;
unsigned long later_pages;

/* Leaves what is not made yet for later; false if it lies in too many places */
static bool __init leave_for_later(pg_data_t *pgdat)
{
	struct zone *zone = pgdat->node_zones + pgdat->nr_zones - 1;
	unsigned long first = pgdat->first_deferred_pfn, start, end;
	u64 i = 0;

	if (first == ULONG_MAX ||
	    !deferred_init_mem_pfn_range_in_zone(&i, zone, &start, &end, first))
		return false;
	for_each_free_mem_pfn_range_in_zone_from(i, zone, &start, &end) {
		if (later_count == ARRAY_SIZE(later_ranges)) {
			later_count = 0;
			later_pages = 0;
			return false;
		}
		later_ranges[later_count++] = (struct later_range){ start, end };
		later_pages += end - start;
	}
	zone->spanned_pages = first - zone->zone_start_pfn;
	pgdat->first_deferred_pfn = ULONG_MAX;
	later_zone = zone;
	return true;
}

/* Makes the pages of the next 32 MiB, or of as many as are needed */
bool __meminit later_grow_zone(struct zone *zone, unsigned int order)
{
	unsigned long step = max(1UL << order, SZ_32M / PAGE_SIZE);
	unsigned long pfn, next, start, end, flags;
	struct later_range *range;

	if (zone != later_zone || !READ_ONCE(later_pages))
		return false;

	pgdat_resize_lock(zone->zone_pgdat, &flags);
	if (later_next == later_count) {
		pgdat_resize_unlock(zone->zone_pgdat, &flags);
		return false;
	}
	range = &later_ranges[later_next];
	start = range->start;
	end = min(range->end, ALIGN(start + step, MAX_ORDER_NR_PAGES));
	deferred_init_pages(zone, start, end);
	for (pfn = start; pfn < end; pfn = next) {
		next = min(end, ALIGN(pfn + 1, MAX_ORDER_NR_PAGES));
		deferred_free_pages(pfn, next - pfn);
	}
	/* There may be holes between the ranges */
	zone->contiguous = false;
	zone_span_writelock(zone);
	zone->spanned_pages = end - zone->zone_start_pfn;
	zone_span_writeunlock(zone);
	range->start = end;
	if (end == range->end)
		later_next++;
	WRITE_ONCE(later_pages, later_pages - (end - start));
	pgdat_resize_unlock(zone->zone_pgdat, &flags);
	return true;
}
