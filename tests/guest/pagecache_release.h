/* The hosted release in address space of its own, for tests/guest/pagecache_host.c. */
#include "hosted_release.h"

#undef PAGE_OFFSET
#undef VMEMMAP_BASE
#undef RELEASE_OPEN_FILE_FIELDS
#define PAGE_OFFSET	0x540000000000
#define VMEMMAP_BASE	0x640000000000
#ifndef __ASSEMBLER__
#define RELEASE_OPEN_FILE_FIELDS	\
	u32 flags;			\
	struct inode *inode;		\
	loff_t pos;
#endif
