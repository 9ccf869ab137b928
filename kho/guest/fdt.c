/* Checking and reading device trees.
 *
 * A blob that came from another kernel is untrusted. fdt_check() goes over all of it once: afterwards every token,
 * name and value lies inside its block, nodes nest, and strings end. fdt_token() stays inside the structure block
 * whatever it is given, so that the check and the readers can share it.
 */
#include "fdt.h"
#include "../../kernels/include/string.h"

static bool printable(const char *s, u32 n)
{
	for (u32 i = 0; i < n; i++)
		if (s[i] < 0x20 || s[i] > 0x7e)
			return false;
	return true;
}

int fdt_token(const void *fdt, u32 at, struct fdt_token *t)
{
	const u8 *s = (const u8 *)fdt + fdt_header_get(fdt, off_struct);
	u32 end = fdt_header_get(fdt, size_struct), left, name_at, size_strings;
	const char *strings;

	if (at > end || end - at < 4)
		return -FDT_ERR_BADSTRUCTURE;
	t->at = at;
	t->kind = fdt_get32(s + at);
	at += 4;
	left = end - at;
	switch (t->kind) {
	case FDT_BEGIN_NODE:
		t->name = (const char *)s + at;
		t->len = (u32)strnlen(t->name, left);
		if (t->len == left)
			return -FDT_ERR_BADSTRUCTURE;
		at += ALIGN_UP(t->len + 1, 4);
		break;
	case FDT_PROP:
		if (left < 8)
			return -FDT_ERR_BADSTRUCTURE;
		t->len = fdt_get32(s + at);
		name_at = fdt_get32(s + at + 4);
		if (t->len > left - 8)
			return -FDT_ERR_BADSTRUCTURE;
		t->value = s + at + 8;
		at += 8 + ALIGN_UP(t->len, 4);
		strings = (const char *)fdt + fdt_header_get(fdt, off_strings);
		size_strings = fdt_header_get(fdt, size_strings);
		if (name_at >= size_strings || !memchr(strings + name_at, 0, size_strings - name_at))
			return -FDT_ERR_BADSTRUCTURE;
		t->name = strings + name_at;
		break;
	case FDT_END_NODE:
	case FDT_NOP:
	case FDT_END:
		break;
	default:
		return -FDT_ERR_BADSTRUCTURE;
	}
	t->next = at;
	return 0;
}

/* ---- the check ---- */

static bool block_inside(u32 at, u32 size, u32 total)
{
	return at >= sizeof(struct fdt_header) && at <= total && size <= total - at;
}

static bool blocks_overlap(u32 a, u32 a_size, u32 b, u32 b_size)
{
	return a_size && b_size && a < b + b_size && b < a + a_size;
}

/* Size of the reservation block with the entry that ends it; 0 if nothing ends it. */
static u32 reserve_size(const u8 *blob, u32 at, u32 total)
{
	for (u32 end = at; total - end >= FDT_RESERVE_ENTRY; end += FDT_RESERVE_ENTRY)
		if (!get_unaligned_u64(blob + end) && !get_unaligned_u64(blob + end + 8))
			return end + FDT_RESERVE_ENTRY - at;
	return 0;
}

static int check_header(const u8 *blob, u64 size)
{
	u32 total, off_struct, off_strings, off_reserve, size_struct, size_strings, size_reserve;

	if (size < sizeof(struct fdt_header))
		return -FDT_ERR_TRUNCATED;
	if (fdt_header_get(blob, magic) != FDT_MAGIC)
		return -FDT_ERR_BADMAGIC;
	if (fdt_header_get(blob, version) < FDT_VERSION || fdt_header_get(blob, last_compatible) > FDT_VERSION)
		return -FDT_ERR_BADVERSION;
	total = fdt_totalsize(blob);
	if (total < sizeof(struct fdt_header) || total > size || total > FDT_SIZE_MAX)
		return -FDT_ERR_TRUNCATED;
	off_struct = fdt_header_get(blob, off_struct);
	off_strings = fdt_header_get(blob, off_strings);
	off_reserve = fdt_header_get(blob, off_reserve);
	size_struct = fdt_header_get(blob, size_struct);
	size_strings = fdt_header_get(blob, size_strings);
	if (off_struct % 4 || off_reserve % 8)
		return -FDT_ERR_BADLAYOUT;
	if (!block_inside(off_struct, size_struct, total) || !block_inside(off_strings, size_strings, total) ||
	    !block_inside(off_reserve, FDT_RESERVE_ENTRY, total))
		return -FDT_ERR_TRUNCATED;
	size_reserve = reserve_size(blob, off_reserve, total);
	if (!size_reserve)
		return -FDT_ERR_TRUNCATED;
	if (blocks_overlap(off_struct, size_struct, off_strings, size_strings) ||
	    blocks_overlap(off_struct, size_struct, off_reserve, size_reserve) ||
	    blocks_overlap(off_strings, size_strings, off_reserve, size_reserve))
		return -FDT_ERR_BADLAYOUT;
	return 0;
}

/* A property: its name is good and no earlier one of the node has it. The properties of a node stand together
 * behind its beginning. */
static int check_property(const void *fdt, u32 node, const struct fdt_token *prop)
{
	size_t len = strnlen(prop->name, FDT_NAME_MAX + 1);
	struct fdt_token t;

	if (!len || len > FDT_NAME_MAX || !printable(prop->name, (u32)len))
		return -FDT_ERR_BADSTRUCTURE;
	fdt_token(fdt, node, &t);
	while (!fdt_token(fdt, t.next, &t) && t.at < prop->at)
		if (t.kind == FDT_PROP && !strcmp(t.name, prop->name))
			return -FDT_ERR_BADSTRUCTURE;
	return 0;
}

static int check_structure(const void *fdt)
{
	struct fdt_token t = {};
	u32 node = 0, depth = 0;
	bool had_root = false, properties = false;
	int err;

	while (1) {
		err = fdt_token(fdt, t.next, &t);
		if (err)
			return err;
		switch (t.kind) {
		case FDT_BEGIN_NODE:
			if (depth ? !t.len : had_root || t.len)
				return -FDT_ERR_BADSTRUCTURE;
			if (depth == FDT_DEPTH_MAX || t.len > FDT_NAME_MAX || !printable(t.name, t.len))
				return -FDT_ERR_BADSTRUCTURE;
			depth++;
			node = t.at;
			had_root = properties = true;
			break;
		case FDT_PROP:
			if (!properties)
				return -FDT_ERR_BADSTRUCTURE;
			err = check_property(fdt, node, &t);
			if (err)
				return err;
			break;
		case FDT_END_NODE:
			if (!depth--)
				return -FDT_ERR_BADSTRUCTURE;
			properties = false;
			break;
		case FDT_END:
			return depth || !had_root ? -FDT_ERR_BADSTRUCTURE : 0;
		}
	}
}

int fdt_check(const void *blob, u64 size)
{
	int err = check_header(blob, size);

	return err ? err : check_structure(blob);
}

/* ---- reading ---- */

/* The token that begins the node, whatever no-operations stand before it. */
static int begin(const void *fdt, int node, struct fdt_token *t)
{
	u32 at = (u32)node;
	int err;

	do {
		err = node < 0 ? -FDT_ERR_BADOFFSET : fdt_token(fdt, at, t);
		if (err)
			return err;
		at = t->next;
	} while (t->kind == FDT_NOP);
	return t->kind == FDT_BEGIN_NODE ? 0 : -FDT_ERR_BADOFFSET;
}

/* The next node on the level where the token t stands; NOTFOUND at the end of the parent. */
static int next_on_level(const void *fdt, struct fdt_token *t)
{
	int err = 0;

	while (!err) {
		err = fdt_token(fdt, t->next, t);
		if (err || t->kind == FDT_BEGIN_NODE)
			break;
		if (t->kind == FDT_END_NODE || t->kind == FDT_END)
			return -FDT_ERR_NOTFOUND;
	}
	return err ? err : (int)t->at;
}

int fdt_first_subnode(const void *fdt, int node)
{
	struct fdt_token t;
	int err = begin(fdt, node, &t);

	return err ? err : next_on_level(fdt, &t);
}

int fdt_next_subnode(const void *fdt, int node)
{
	struct fdt_token t;
	int depth = 1, err = begin(fdt, node, &t);

	while (!err && depth) {
		err = fdt_token(fdt, t.next, &t);
		if (!err && t.kind == FDT_BEGIN_NODE)
			depth++;
		else if (!err && t.kind == FDT_END_NODE)
			depth--;
		else if (!err && t.kind == FDT_END)
			err = -FDT_ERR_BADSTRUCTURE;
	}
	return err ? err : next_on_level(fdt, &t);
}

const char *fdt_node_name(const void *fdt, int node)
{
	struct fdt_token t;

	return begin(fdt, node, &t) ? "" : t.name;
}

int fdt_subnode(const void *fdt, int node, const char *name)
{
	int child = fdt_first_subnode(fdt, node);

	while (child >= 0 && strcmp(fdt_node_name(fdt, child), name))
		child = fdt_next_subnode(fdt, child);
	return child;
}

const void *fdt_getprop(const void *fdt, int node, const char *name, u32 *len)
{
	struct fdt_token t;

	if (begin(fdt, node, &t))
		return NULL;
	while (!fdt_token(fdt, t.next, &t) && (t.kind == FDT_PROP || t.kind == FDT_NOP)) {
		if (t.kind != FDT_PROP || strcmp(t.name, name))
			continue;
		if (len)
			*len = t.len;
		return t.value;
	}
	return NULL;
}

int fdt_node_compatible(const void *fdt, int node, const char *compatible)
{
	u32 len, size = (u32)strlen(compatible) + 1;
	const char *list = fdt_getprop(fdt, node, "compatible", &len);

	if (!list)
		return -FDT_ERR_NOTFOUND;
	while (len) {
		u32 n = (u32)strnlen(list, len) + 1;

		if (n > len)		/* not terminated: no string */
			break;
		if (n == size && !memcmp(list, compatible, n))
			return 0;
		list += n;
		len -= n;
	}
	return 1;
}

int fdt_getprop_u64(const void *fdt, int node, const char *name, u64 *value)
{
	u32 len;
	const void *p = fdt_getprop(fdt, node, name, &len);

	if (!p)
		return -FDT_ERR_NOTFOUND;
	if (len != 8)
		return -FDT_ERR_BADVALUE;
	*value = get_unaligned_u64(p);
	return 0;
}

int fdt_getprop_u32(const void *fdt, int node, const char *name, u32 *value)
{
	u32 len;
	const void *p = fdt_getprop(fdt, node, name, &len);

	if (!p)
		return -FDT_ERR_NOTFOUND;
	if (len != 4)
		return -FDT_ERR_BADVALUE;
	*value = get_unaligned_u32(p);
	return 0;
}

int fdt_find_string(const char *strings, u32 size, const char *name)
{
	u32 len = (u32)strlen(name) + 1;

	for (u32 at = 0; at + len <= size; at++)
		if (!memcmp(strings + at, name, len))
			return (int)at;
	return -1;
}
