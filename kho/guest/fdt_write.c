/* Writing a new device tree from front to back.
 *
 *	| header | pad to 0x30 | reservations | structure -> ...  free  ... <- strings |
 *
 * A string that is new goes in front of the others, so until the end only its distance from the end of the buffer
 * is known, and that is what properties store; fdt_finish() moves the strings down and turns distances into
 * offsets. The result is byte for byte what Linux's sequential writer makes.
 */
#include "fdt.h"
#include "../../kernels/include/string.h"

#define OFF_RESERVE	0x30
#define OFF_STRUCT	(OFF_RESERVE + FDT_RESERVE_ENTRY)

/* Room for n bytes at the end of the structure block, zeroed; NULL after an error. */
static u8 *grab(struct fdt_writer *w, u64 n)
{
	u8 *p = w->buf + w->at;

	if (w->err)
		return NULL;
	if (n > w->size - w->size_strings - w->at) {
		w->err = -FDT_ERR_NOSPACE;
		return NULL;
	}
	memset(p, 0, n);
	w->at += (u32)n;
	return p;
}

static void put_token(struct fdt_writer *w, u32 token)
{
	u8 *p = grab(w, 4);

	if (p)
		fdt_put32(token, p);
}

void fdt_create(struct fdt_writer *w, void *buf, u64 size)
{
	*w = (struct fdt_writer){ .buf = buf, .size = (u32)min(size, (u64)FDT_SIZE_MAX) };
	grab(w, OFF_STRUCT);
}

void fdt_begin_node(struct fdt_writer *w, const char *name)
{
	size_t len = strlen(name);
	u8 *p;

	if (!w->err && (w->depth ? !len : w->had_root || len))
		w->err = -FDT_ERR_BADSTATE;
	put_token(w, FDT_BEGIN_NODE);
	p = grab(w, ALIGN_UP(len + 1, 4));
	if (!p)
		return;
	memcpy(p, name, len);
	w->depth++;
	w->had_root = true;
}

void fdt_end_node(struct fdt_writer *w)
{
	if (!w->err && !w->depth)
		w->err = -FDT_ERR_BADSTATE;
	w->depth--;
	put_token(w, FDT_END_NODE);
}

/* Distance of a string from the end of the buffer; it is added if it is not there. */
static u32 string_distance(struct fdt_writer *w, const char *name)
{
	u32 len = (u32)strlen(name) + 1;
	u8 *strings = w->buf + w->size - w->size_strings;
	int at = fdt_find_string((const char *)strings, w->size_strings, name);

	if (at >= 0)
		return w->size_strings - (u32)at;
	if (len > w->size - w->size_strings - w->at) {
		w->err = -FDT_ERR_NOSPACE;
		return 0;
	}
	memcpy(strings - len, name, len);
	w->size_strings += len;
	return w->size_strings;
}

void fdt_property(struct fdt_writer *w, const char *name, const void *value, u32 len)
{
	u32 distance;
	u8 *p;

	if (!w->err && !w->depth)
		w->err = -FDT_ERR_BADSTATE;
	if (w->err)
		return;
	distance = string_distance(w, name);
	p = grab(w, 12 + ALIGN_UP((u64)len, 4));
	if (!p)
		return;
	fdt_put32(FDT_PROP, p);
	fdt_put32(len, p + 4);
	fdt_put32(distance, p + 8);
	memcpy(p + 12, value, len);
}

void fdt_property_string(struct fdt_writer *w, const char *name, const char *value)
{
	fdt_property(w, name, value, (u32)strlen(value) + 1);
}

void fdt_property_u64(struct fdt_writer *w, const char *name, u64 value)
{
	fdt_property(w, name, &value, sizeof(value));
}

void fdt_property_u32(struct fdt_writer *w, const char *name, u32 value)
{
	fdt_property(w, name, &value, sizeof(value));
}

int fdt_finish(struct fdt_writer *w)
{
	struct fdt_token t = {};

	if (!w->err && (w->depth || !w->had_root))
		w->err = -FDT_ERR_BADSTATE;
	put_token(w, FDT_END);
	if (w->err)
		return w->err;
	memmove(w->buf + w->at, w->buf + w->size - w->size_strings, w->size_strings);
	fdt_header_set(w->buf, magic, FDT_MAGIC);
	fdt_header_set(w->buf, totalsize, w->at + w->size_strings);
	fdt_header_set(w->buf, off_struct, OFF_STRUCT);
	fdt_header_set(w->buf, off_strings, w->at);
	fdt_header_set(w->buf, off_reserve, OFF_RESERVE);
	fdt_header_set(w->buf, version, FDT_VERSION);
	fdt_header_set(w->buf, last_compatible, FDT_LAST_COMPATIBLE);
	fdt_header_set(w->buf, size_strings, w->size_strings);
	fdt_header_set(w->buf, size_struct, w->at - OFF_STRUCT);
	for (u32 at = 0; at < w->at - OFF_STRUCT; at = t.next) {
		u8 *p = w->buf + OFF_STRUCT + at;

		if (fdt_get32(p) == FDT_PROP)
			fdt_put32(w->size_strings - fdt_get32(p + 8), p + 8);
		w->err = fdt_token(w->buf, at, &t);
		if (w->err)
			return w->err;
	}
	return 0;
}
