/* The hosted release in address space of its own, so that KHO's library can be in one process with the others. */
#include "hosted_release.h"

#undef KERNEL_BASE
#undef PAGE_OFFSET
#undef VMALLOC_BASE
#undef VMEMMAP_BASE
#define KERNEL_BASE		0x540000000000
#define PAGE_OFFSET		0x510000000000
#define VMALLOC_BASE		0x530000000000
#define VMEMMAP_BASE		0x520000000000
