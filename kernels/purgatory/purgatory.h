/* What the kernel that loads an image writes into its purgatory, at the purgatory's first byte, and what the purgatory
 * leaves there when it does not let the next kernel run.
 */
#pragma once
#include "../include/types.h"
#include "../include/sha256.h"

#define PURGATORY_REGIONS_MAX	16
#define PURGATORY_MAGIC		0x59524f5441475255UL	/* "URGATORY" in memory */

struct purgatory_region {
	phys_addr_t start;
	u64 size;			/* of the whole segment: what follows its contents is zero, and verified too */
	u64 segment;			/* its number in the image, for the message */
	u8 digest[SHA256_SIZE];		/* of these bytes */
};

struct purgatory {
	u8 entry[16];			/* the code begins here: a jump over this structure */
	u64 magic;
	phys_addr_t kernel;		/* 64-bit entry of the next kernel */
	phys_addr_t boot_params;
	u64 nr_regions;
	/* Left behind on a mismatch; failed is one more than the index of the region. */
	u64 failed;
	u8 computed[SHA256_SIZE];
	struct purgatory_region region[PURGATORY_REGIONS_MAX];
};
static_assert(sizeof(struct purgatory_region) == 56, "read by the host");
static_assert(offsetof(struct purgatory, region) == 88, "read by the host");
static_assert(sizeof(struct purgatory) == 0x3d8, "entry.S leaves this much room");
