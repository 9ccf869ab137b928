/* A release for KHO's code in a process of the host; its addresses are not those of hosted_release.h, so that both
 * kinds of library can be in one process. */
#define RELEASE_NAME		"hosted"
#define RELEASE_VERSION		"0.0.0-hosted"
#define RELEASE_KHO_COMPATIBLE	"kho-v4"

#define RELEASE_PREF_ADDRESS	0x1000000
#define KERNEL_BASE		0x540000000000
#define PAGE_OFFSET		0x510000000000
#define VMALLOC_BASE		0x530000000000
#define VMEMMAP_BASE		0x520000000000

#define RELEASE_MEMBLOCK_TOP_DOWN	1
#define RELEASE_BUDDY_LIFO		1

#ifndef __ASSEMBLER__
#define RELEASE_PAGE_FIELDS		\
	u32 flags;			\
	s32 refcount;			\
	u64 private;			\
	struct list_head lru;		\
	void *mapping;			\
	u64 index;			\
	struct slab *slab;		\
	u8 order;

#define RELEASE_THREAD_FIELDS		\
	u64 rsp;			\
	struct list_head run_list;

#define RELEASE_FILE_FIELDS		\
	u64 size;
#endif
