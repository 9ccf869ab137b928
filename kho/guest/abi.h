/* KHO's formats, version kho-v4: what passes from one kernel to the next. The same facts for the host are in
 * ../abi.py; a test compares the two through DWARF. All integers are little-endian.
 */
#pragma once
#include "../../kernels/include/types.h"
#include "../../kernels/include/release.h"

#define KHO_FDT_COMPATIBLE		RELEASE_KHO_COMPATIBLE	/* "kho-v4"; test releases have another */
#define KHO_FDT_MEMORY_MAP_PROP_NAME	"preserved-memory-map"
#define KHO_SUB_TREE_PROP_NAME		"preserved-data"
#define KHO_SUB_TREE_SIZE_PROP_NAME	"blob-size"

/* Numbers are an enumeration, so that debug information has them. */
enum kho_abi {
	/* Radix tree of preserved blocks: key = 1 << (52 - order) | phys >> (12 + order). */
	KHO_ORDER_0_LOG2 = 52,
	KHO_TABLE_SIZE_LOG2 = 9,
	KHO_BITMAP_SIZE_LOG2 = 15,
	KHO_TREE_MAX_DEPTH = 6,

	/* struct page.private of the first page of a preserved block that nobody restored yet: "KHOP" in the upper
	 * half, the order in the lower. */
	KHO_PAGE_MAGIC = 0x4b484f50,

	/* struct kho_vmalloc.flags */
	KHO_VMALLOC_ALLOC = 0x0001,
	KHO_VMALLOC_HUGE_VMAP = 0x0002,

	KHO_BLOCK_SIZE = 4096,
	KHO_MAX_BLOCKS = 10000,

	KHO_KEXEC_METADATA_VERSION = 1,

	SETUP_KEXEC_KHO = 10,		/* type in the boot protocol's chain of setup_data */
};

struct kho_radix_node {
	u64 table[512];			/* physical addresses, 0 = absent */
};
struct kho_radix_leaf {
	u64 bitmap[512];
};
static_assert(sizeof(struct kho_radix_node) == 4096, "one page");
static_assert(sizeof(struct kho_radix_leaf) == 4096, "one page");

struct kho_scratch {
	u64 addr, size;
};
static_assert(sizeof(struct kho_scratch) == 16, "kho-v4");

struct kho_vmalloc {
	u64 first;			/* physical address of a chunk, 0 = none */
	u32 total_pages;
	u16 flags;
	u16 order;
};
static_assert(sizeof(struct kho_vmalloc) == 16, "kho-v4");

struct kho_vmalloc_chunk {
	u64 next;
	u64 phys[511];
};
static_assert(sizeof(struct kho_vmalloc_chunk) == 4096, "one page");

struct kho_block_header_ser {
	u64 next;
	u64 count;
};
static_assert(sizeof(struct kho_block_header_ser) == 16, "kho-v4");

#define KHO_METADATA_NODE_NAME	"kexec-metadata"
struct kho_kexec_metadata {
	u32 version;
	char previous_release[65];
	u32 kexec_count;
} __packed;
static_assert(sizeof(struct kho_kexec_metadata) == 73, "kexec-metadata version 1");

/* setup_data of the boot protocol */
struct setup_data {
	u64 next;
	u32 type, len;
};
struct kho_data {
	u64 fdt_addr, fdt_size, scratch_addr, scratch_size;
} __packed;
static_assert(sizeof(struct kho_data) == 32, "setup_data type 10");

#define MEMBLOCK_KHO_NODE_NAME	"memblock"
#define MEMBLOCK_KHO_FDT_COMPATIBLE "memblock-v1"
#define RESERVE_MEM_KHO_NODE_COMPATIBLE "reserve-mem-v1"
