/* Files of the initramfs (fs/ramfs.c, fs/cpio.c). Userspace comes later; this is what the kernel itself needs. */
#pragma once
#include "types.h"
#include "list.h"
#include "page.h"

#define NAME_MAX	255
#define PATH_MAX	4096

/* Fields: struct list_head siblings, children; struct ramfs_file *parent; u32 mode; u64 size; const u8 *data (in the
 * initramfs or vmalloced); u64 ino; char *name. The release orders them and adds its own. */
struct ramfs_file {
	RELEASE_FILE_FIELDS
};
#define S_IFMT	0170000
#define S_IFDIR	0040000
#define S_IFREG	0100000
#define S_IFLNK	0120000
#define S_IFCHR	0020000

void ramfs_init(void);
/* File of an absolute path, symbolic links not followed; NULL. */
struct ramfs_file *file_lookup(const char *path);
/* Makes the file and missing directories; NULL if something else is there or memory is short. */
struct ramfs_file *file_create(const char *path, u32 mode, const void *data, u64 size);
/* Unpacks a cpio archive in "newc" form; 0, or -EINVAL with a message that says where it is malformed. */
int cpio_unpack(const void *archive, u64 size);
