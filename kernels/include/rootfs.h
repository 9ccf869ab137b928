/* From the unpacked initramfs to the root file system (fs/rootfs.c). */
#pragma once
#include "types.h"

struct ramfs_entry {
	u32 mode;
	const void *data;
	u64 size;
};
int ramfs_for_each(int (*fn)(const char *path, const struct ramfs_entry *e));
void populate_rootfs(void);
