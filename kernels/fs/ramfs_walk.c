/* Goes over what the initramfs was unpacked into (fs/ramfs.c), for fs/rootfs.c: no other file knows both kinds of files. */
#include "fs.h"
#include "rootfs.h"

int ramfs_for_each(int (*fn)(const char *path, const struct ramfs_entry *e))
{
	struct ramfs_file *root = file_lookup("/"), *f = root;
	static char path[PATH_MAX];
	u64 len = 0;

	while (root) {
		if (!list_empty(&f->children)) {
			f = list_first_entry(&f->children, struct ramfs_file, siblings);
		} else {
			while (f != root && f->siblings.next == &f->parent->children) {
				f = f->parent;
				while (len && path[--len] != '/')
					;
			}
			if (f == root)
				return 0;
			f = list_next_entry(f, siblings);
			while (len && path[--len] != '/')
				;
		}
		path[len++] = '/';
		for (const char *s = f->name; *s && len < PATH_MAX - 1; s++)
			path[len++] = *s;
		path[len] = 0;
		if (fn(path, &(struct ramfs_entry){ .mode = f->mode, .data = f->data, .size = f->size }))
			return -1;
	}
	return 0;
}
