/* Unpacks the initramfs: cpio archives in the "newc" form, one after the other.
 *
 *	header		"070701" ("070702" with a checksum) and 13 numbers of 8 hex digits
 *	name		with its NUL, then padding to 4 bytes
 *	contents	then padding to 4 bytes
 *	...		until the name is TRAILER!!!; zeros may follow before the next archive
 *
 * The archive comes from a boot loader or from the kernel before: nothing in it is trusted. All offsets are
 * 64 bits and all sizes 32, so a sum cannot wrap; each is held against the archive's end before it is used.
 *
 * Of several hard links to a file only one has the contents, often the last. They become files with the
 * same contents.
 */
#define pr_fmt(fmt) "initramfs: " fmt
#include "fs.h"
#include "errno.h"
#include "printk.h"
#include "string.h"

#define MAGIC_SIZE	6
#define FIELD_SIZE	8
#define HEADER_SIZE	(MAGIC_SIZE + 13 * FIELD_SIZE)
#define TRAILER		"TRAILER!!!"

enum field {
	INO, MODE, UID, GID, NLINK, MTIME, FILE_SIZE, MAJOR, MINOR, RMAJOR, RMINOR, NAME_SIZE, CHECK, FIELDS
};

struct archive {
	const u8 *data;
	u64 size;
	u64 at;				/* where the next member begins */
	struct list_head links;		/* hard-linked files of this archive */
};

struct member {
	u64 at;				/* of its header */
	u32 field[FIELDS];
	const char *name;
	const u8 *contents;
	bool checked;			/* has a checksum */
};

struct hard_link {
	struct list_head list;
	u32 ino, major, minor;
	struct ramfs_file *file;
};

static int malformed(u64 at, const char *what)
{
	pr_err("archive is malformed at byte %lu: %s\n", at, what);
	return -EINVAL;
}

static bool read_hex(const u8 *s, u32 *out)
{
	u32 v = 0;

	for (unsigned int i = 0; i < FIELD_SIZE; i++) {
		u8 c = s[i];

		if (c >= '0' && c <= '9')
			c = (u8)(c - '0');
		else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
			c = (u8)((c | 0x20) - 'a' + 10);
		else
			return false;
		v = v << 4 | c;
	}
	*out = v;
	return true;
}

static int read_header(struct archive *a, struct member *m)
{
	const u8 *header = a->data + a->at;

	m->at = a->at;
	if (a->size - a->at < HEADER_SIZE)
		return malformed(m->at, "it ends without a trailer");
	m->checked = !memcmp(header, "070702", MAGIC_SIZE);
	if (!m->checked && memcmp(header, "070701", MAGIC_SIZE))
		return malformed(m->at, "no magic number of a newc member");
	for (unsigned int i = 0; i < FIELDS; i++) {
		if (!read_hex(header + MAGIC_SIZE + i * FIELD_SIZE, &m->field[i]))
			return malformed(m->at + MAGIC_SIZE + i * FIELD_SIZE, "no number of 8 hex digits");
	}
	return 0;
}

static bool name_goes_up(const char *name)
{
	for (const char *s = strstr(name, ".."); s; s = strstr(s + 1, "..")) {
		if ((s == name || s[-1] == '/') && (s[2] == '/' || !s[2]))
			return true;
	}
	return false;
}

static bool component_too_long(const char *name)
{
	size_t length = 0;

	for (; *name; name++) {
		length = *name == '/' ? 0 : length + 1;
		if (length > NAME_MAX)
			return true;
	}
	return false;
}

/* Header, name and the extent of the contents; moves behind the member. */
static int read_member(struct archive *a, struct member *m)
{
	u64 at = a->at + HEADER_SIZE;
	u32 name_size;
	int err = read_header(a, m);

	if (err)
		return err;
	name_size = m->field[NAME_SIZE];
	if (!name_size || name_size > PATH_MAX)
		return malformed(m->at, "the size of the name is not in 1..4096");
	if (name_size > a->size - at)
		return malformed(m->at, "the name goes beyond the archive");
	m->name = (const char *)a->data + at;
	if (m->name[name_size - 1])
		return malformed(at, "the name has no NUL at its end");
	if (name_goes_up(m->name))
		return malformed(at, "the name goes up with \"..\"");
	if (component_too_long(m->name))
		return malformed(at, "a part of the name is longer than 255 bytes");

	/* Padding that was cut off is missed by nobody but a member that follows. */
	at = min(ALIGN_UP(at + name_size, 4), a->size);
	if (m->field[FILE_SIZE] > a->size - at)
		return malformed(m->at, "the contents go beyond the archive");
	m->contents = a->data + at;
	a->at = min(ALIGN_UP(at + m->field[FILE_SIZE], 4), a->size);
	return 0;
}

static bool checksum_fits(const struct member *m)
{
	u32 sum = 0;

	for (u64 i = 0; i < m->field[FILE_SIZE]; i++)
		sum += m->contents[i];
	return sum == m->field[CHECK];
}

/* Remembers the file; contents go from whichever link has them to all others. */
static int share_contents(struct archive *a, const struct member *m, struct ramfs_file *f)
{
	struct hard_link *link, *added = kmalloc(sizeof(*added), GFP_KERNEL);

	if (!added)
		return -ENOMEM;
	*added = (struct hard_link){ .ino = m->field[INO], .major = m->field[MAJOR], .minor = m->field[MINOR],
				     .file = f };
	list_for_each_entry(link, &a->links, list) {
		if (link->ino != added->ino || link->major != added->major || link->minor != added->minor)
			continue;
		if (f->size) {
			link->file->data = f->data;
			link->file->size = f->size;
		} else {
			f->data = link->file->data;
			f->size = link->file->size;
		}
	}
	list_add_tail(&added->list, &a->links);
	return 0;
}

static void forget_links(struct archive *a)
{
	struct hard_link *link, *next;

	list_for_each_entry_safe(link, next, &a->links, list) {
		list_del(&link->list);
		kfree(link);
	}
}

static int make_file(struct archive *a, const struct member *m)
{
	u32 mode = m->field[MODE], type = mode & S_IFMT;
	bool has_contents = type == S_IFREG || type == S_IFLNK;
	struct ramfs_file *f;

	if (mode > 0xffff || !type)
		return malformed(m->at, "the mode has no known type of file");
	if (!has_contents && m->field[FILE_SIZE])
		return malformed(m->at, "contents in what is no file");
	if (m->checked && type == S_IFREG && !checksum_fits(m))
		return malformed(m->at, "the contents have another checksum");
	f = file_create(m->name, mode, has_contents ? m->contents : NULL, m->field[FILE_SIZE]);
	if (!f)
		return malformed(m->at, "something else has this name, or memory is short");
	return type == S_IFREG && m->field[NLINK] > 1 ? share_contents(a, m, f) : 0;
}

/* One archive, up to and with its trailer. */
static int unpack_one(struct archive *a, u64 *members)
{
	struct member m;
	int err;

	while (!(err = read_member(a, &m))) {
		if (!strcmp(m.name, TRAILER))
			break;
		err = make_file(a, &m);
		if (err)
			break;
		++*members;
	}
	forget_links(a);
	return err;
}

int cpio_unpack(const void *archive, u64 size)
{
	struct archive a = { .data = archive, .size = size, .links = LIST_HEAD_INIT(a.links) };
	u64 members = 0, archives = 0;
	int err;

	while (1) {
		while (a.at < size && !a.data[a.at])
			a.at++;
		if (a.at == size)
			break;
		if (!IS_ALIGNED(a.at, 4))
			return malformed(a.at, "an archive begins at no multiple of 4");
		err = unpack_one(&a, &members);
		if (err)
			return err;
		archives++;
	}
	if (!archives)
		return malformed(0, "it is empty");
	pr_info("%lu files in %lu archives\n", members, archives);
	return 0;
}
