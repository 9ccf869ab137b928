/* The hosted release with either placement, each in address space of its own: MM_BOTTOM_UP is 0 or 1. */
#include "hosted_release.h"

#undef PAGE_OFFSET
#undef VMEMMAP_BASE
#undef RELEASE_MEMBLOCK_TOP_DOWN
#undef RELEASE_BUDDY_LIFO
#define PAGE_OFFSET			(0x500000000000 + MM_BOTTOM_UP * 0x80000000000)
#define VMEMMAP_BASE			(0x600000000000 + MM_BOTTOM_UP * 0x80000000000)
#define RELEASE_MEMBLOCK_TOP_DOWN	(!MM_BOTTOM_UP)
#define RELEASE_BUDDY_LIFO		(!MM_BOTTOM_UP)
