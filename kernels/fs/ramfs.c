/* Files in memory: a tree of names that begins at the root directory.
 *
 * Contents are not copied: a file made from the initramfs points into it, so that unpacking costs by the
 * number of files and not by their size. The tree is built by one thread during start-up and only read
 * afterwards.
 */
#include "fs.h"
#include "errno.h"
#include "panic.h"
#include "string.h"

static struct ramfs_file root;
static u64 last_ino;

static void init_file(struct ramfs_file *f, struct ramfs_file *parent, char *name, u32 mode)
{
	memset(f, 0, sizeof(*f));
	f->name = name;
	f->parent = parent;
	f->mode = mode;
	f->ino = ++last_ino;
	INIT_LIST_HEAD(&f->children);
	INIT_LIST_HEAD(&f->siblings);
	if (parent != f)
		list_add_tail(&f->siblings, &parent->children);
}

void ramfs_init(void)
{
	init_file(&root, &root, "/", S_IFDIR | 0755);
}

static bool is_directory(const struct ramfs_file *f)
{
	return (f->mode & S_IFMT) == S_IFDIR;
}

/* The next component of a path, without slashes around it and never "."; false at the end. */
static bool next_component(const char **path, const char **name, size_t *length)
{
	const char *s = *path;

	do {
		while (*s == '/')
			s++;
		*name = s;
		while (*s && *s != '/')
			s++;
		*length = (size_t)(s - *name);
	} while (*length == 1 && **name == '.');
	*path = s;
	return *length;
}

static struct ramfs_file *find_child(struct ramfs_file *dir, const char *name, size_t length)
{
	struct ramfs_file *f;

	list_for_each_entry(f, &dir->children, siblings) {
		if (!strncmp(f->name, name, length) && !f->name[length])
			return f;
	}
	return NULL;
}

static struct ramfs_file *add_child(struct ramfs_file *dir, const char *name, size_t length, u32 mode)
{
	struct ramfs_file *f;
	char *copy;

	if (length > NAME_MAX || (length == 2 && !memcmp(name, "..", 2)))
		return NULL;
	f = kmalloc(sizeof(*f), GFP_KERNEL);
	if (!f)
		return NULL;
	copy = kmalloc(length + 1, GFP_KERNEL);
	if (!copy) {
		kfree(f);
		return NULL;
	}
	memcpy(copy, name, length);
	copy[length] = '\0';
	init_file(f, dir, copy, mode);
	return f;
}

struct ramfs_file *file_lookup(const char *path)
{
	struct ramfs_file *f = &root;
	const char *name;
	size_t length;

	if (*path != '/')
		return NULL;
	while (next_component(&path, &name, &length)) {
		f = is_directory(f) ? find_child(f, name, length) : NULL;
		if (!f)
			return NULL;
	}
	return f;
}

struct ramfs_file *file_create(const char *path, u32 mode, const void *data, u64 size)
{
	struct ramfs_file *dir = &root, *f = &root;
	const char *name;
	size_t length;

	while (next_component(&path, &name, &length)) {
		const char *rest = path, *next_name;
		size_t next_length;
		bool last = !next_component(&rest, &next_name, &next_length);

		if (!is_directory(dir))
			return NULL;
		f = find_child(dir, name, length);
		if (!f)
			f = add_child(dir, name, length, last ? mode : S_IFDIR | 0755);
		if (!f)
			return NULL;
		dir = f;
	}
	if ((f->mode ^ mode) & S_IFMT)
		return NULL;
	f->mode = mode;
	f->data = data;
	f->size = size;
	return f;
}
