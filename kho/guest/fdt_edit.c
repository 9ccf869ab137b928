/* Changing a device tree in place.
 *
 *	| header | reservations | structure | strings |
 *
 * Every edit opens or closes a gap in the structure block and moves all behind it, and a new string goes to the
 * end. What an edit needs is counted before the first byte moves. New properties and sub-nodes are put in front of
 * the others of their kind, as in Linux.
 */
#include "fdt.h"
#include "../../kernels/include/string.h"

#define OFF_RESERVE_PACKED	0x28

static u8 *structure(void *fdt) { return (u8 *)fdt + fdt_header_get(fdt, off_struct); }

int fdt_pack(void *fdt)
{
	u32 off_reserve = fdt_header_get(fdt, off_reserve);
	u32 off_struct = fdt_header_get(fdt, off_struct), size_struct = fdt_header_get(fdt, size_struct);
	u32 off_strings = fdt_header_get(fdt, off_strings), size_strings = fdt_header_get(fdt, size_strings);
	u8 *blob = fdt;
	u32 size_reserve = 0, at = OFF_RESERVE_PACKED;

	if (off_reserve < at || off_struct < off_reserve + FDT_RESERVE_ENTRY || off_strings < off_struct + size_struct)
		return -FDT_ERR_BADLAYOUT;
	while (get_unaligned_u64(blob + off_reserve + size_reserve) ||
	       get_unaligned_u64(blob + off_reserve + size_reserve + 8))
		size_reserve += FDT_RESERVE_ENTRY;
	size_reserve += FDT_RESERVE_ENTRY;
	memmove(blob + at, blob + off_reserve, size_reserve);
	fdt_header_set(fdt, off_reserve, at);
	at += size_reserve;
	memmove(blob + at, blob + off_struct, size_struct);
	fdt_header_set(fdt, off_struct, at);
	at += size_struct;
	memmove(blob + at, blob + off_strings, size_strings);
	fdt_header_set(fdt, off_strings, at);
	fdt_header_set(fdt, totalsize, at + size_strings);
	return 0;
}

/* Whether an edit that makes the blob `more` bytes longer can be done at all. */
static int may_edit(void *fdt, u64 room, u64 more)
{
	u32 off_strings = fdt_header_get(fdt, off_strings), size_strings = fdt_header_get(fdt, size_strings);

	if (off_strings != fdt_header_get(fdt, off_struct) + fdt_header_get(fdt, size_struct) ||
	    fdt_totalsize(fdt) != off_strings + size_strings)
		return -FDT_ERR_BADLAYOUT;
	room = min(room, (u64)FDT_SIZE_MAX);
	return fdt_totalsize(fdt) > room || more > room - fdt_totalsize(fdt) ? -FDT_ERR_NOSPACE : 0;
}

/* Replaces old_len bytes of the structure block at `at` by new_len bytes of zeros. */
static void splice(void *fdt, u32 at, u32 old_len, u32 new_len)
{
	u32 off = fdt_header_get(fdt, off_struct) + at, total = fdt_totalsize(fdt);
	u8 *p = (u8 *)fdt + off;

	memmove(p + new_len, p + old_len, total - off - old_len);
	memset(p, 0, new_len);
	fdt_header_set(fdt, totalsize, total - old_len + new_len);
	fdt_header_set(fdt, off_strings, fdt_header_get(fdt, off_strings) - old_len + new_len);
	fdt_header_set(fdt, size_struct, fdt_header_get(fdt, size_struct) - old_len + new_len);
}

static u32 add_string(void *fdt, const char *name)
{
	u32 size = fdt_header_get(fdt, size_strings), len = (u32)strlen(name) + 1;

	memcpy((u8 *)fdt + fdt_totalsize(fdt), name, len);
	fdt_header_set(fdt, size_strings, size + len);
	fdt_header_set(fdt, totalsize, fdt_totalsize(fdt) + len);
	return size;
}

static int begin(const void *fdt, int node, struct fdt_token *t)
{
	if (node < 0 || fdt_token(fdt, (u32)node, t) || t->kind != FDT_BEGIN_NODE)
		return -FDT_ERR_BADOFFSET;
	return 0;
}

int fdt_add_subnode(void *fdt, u64 room, int parent, const char *name)
{
	u64 len = strlen(name), more = 8 + ALIGN_UP(len + 1, 4);
	struct fdt_token t;
	u8 *p;
	int err;

	if (!len || len > FDT_NAME_MAX)
		return -FDT_ERR_BADVALUE;
	err = begin(fdt, parent, &t);
	if (err)
		return err;
	if (fdt_subnode(fdt, parent, name) >= 0)
		return -FDT_ERR_EXISTS;
	err = may_edit(fdt, room, more);
	if (err)
		return err;
	do				/* behind the properties */
		err = fdt_token(fdt, t.next, &t);
	while (!err && (t.kind == FDT_PROP || t.kind == FDT_NOP));
	if (err)
		return err;
	splice(fdt, t.at, 0, (u32)more);
	p = structure(fdt) + t.at;
	fdt_put32(FDT_BEGIN_NODE, p);
	memcpy(p + 4, name, len);
	fdt_put32(FDT_END_NODE, p + more - 4);
	return (int)t.at;
}

int fdt_setprop(void *fdt, u64 room, int node, const char *name, const void *value, u32 len)
{
	u64 name_len = strlen(name), more, old = 0;
	const char *strings = (const char *)fdt + fdt_header_get(fdt, off_strings);
	struct fdt_token t;
	u32 at, name_at;
	u8 *p;
	int found, err = begin(fdt, node, &t);

	if (err)
		return err;
	if (!name_len || name_len > FDT_NAME_MAX)
		return -FDT_ERR_BADVALUE;
	at = t.next;			/* in front of the other properties, if it is new */
	while (!fdt_token(fdt, t.next, &t) && (t.kind == FDT_PROP || t.kind == FDT_NOP))
		if (t.kind == FDT_PROP && !strcmp(t.name, name)) {
			at = t.at;
			old = t.next - t.at;
			break;
		}
	found = fdt_find_string(strings, fdt_header_get(fdt, size_strings), name);
	more = 12 + ALIGN_UP((u64)len, 4);
	err = may_edit(fdt, room + old, more + (found < 0 ? name_len + 1 : 0));
	if (err)
		return err;
	splice(fdt, at, (u32)old, (u32)more);
	name_at = found < 0 ? add_string(fdt, name) : (u32)found;
	p = structure(fdt) + at;
	fdt_put32(FDT_PROP, p);
	fdt_put32(len, p + 4);
	fdt_put32(name_at, p + 8);
	memcpy(p + 12, value, len);
	return 0;
}

int fdt_setprop_u64(void *fdt, u64 room, int node, const char *name, u64 value)
{
	return fdt_setprop(fdt, room, node, name, &value, sizeof(value));
}

int fdt_del_node(void *fdt, int node)
{
	struct fdt_token t;
	int depth = 1, err = begin(fdt, node, &t);

	if (!err)
		err = may_edit(fdt, FDT_SIZE_MAX, 0);
	while (!err && depth) {
		err = fdt_token(fdt, t.next, &t);
		if (!err && t.kind == FDT_BEGIN_NODE)
			depth++;
		else if (!err && t.kind == FDT_END_NODE)
			depth--;
	}
	if (err)
		return err;
	splice(fdt, (u32)node, t.next - (u32)node, 0);
	return 0;
}
