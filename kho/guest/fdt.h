/* Flattened device trees, version 17 (Devicetree Specification, chapter 5), as containers of KHO's data.
 *
 *	fdt.c		check a blob that somebody else wrote, and read one that was checked
 *	fdt_write.c	write a new blob from front to back
 *	fdt_edit.c	change a blob where it lies
 *
 * Nothing is read from a foreign blob before fdt_check() accepted it: the other functions rely on that. A node is
 * the offset of its first token in the structure block. Errors are negated FDT_ERR_ codes, with the numbers
 * that Linux prints; property values are raw bytes, and KHO's integers in them are little-endian.
 */
#pragma once
#include "../../kernels/include/types.h"

#define FDT_ERR_NOTFOUND	1
#define FDT_ERR_EXISTS		2
#define FDT_ERR_NOSPACE		3
#define FDT_ERR_BADOFFSET	4
#define FDT_ERR_BADSTATE	7
#define FDT_ERR_TRUNCATED	8
#define FDT_ERR_BADMAGIC	9
#define FDT_ERR_BADVERSION	10
#define FDT_ERR_BADSTRUCTURE	11
#define FDT_ERR_BADLAYOUT	12
#define FDT_ERR_BADVALUE	15

#define FDT_ROOT		0
#define FDT_SIZE_MAX		16384U	/* KHO's blobs are one page; this bounds the work on a foreign one */
#define FDT_DEPTH_MAX		32
#define FDT_NAME_MAX		63

#define FDT_MAGIC		0xd00dfeedU
#define FDT_VERSION		17
#define FDT_LAST_COMPATIBLE	16

#define FDT_BEGIN_NODE		1
#define FDT_END_NODE		2
#define FDT_PROP		3
#define FDT_NOP			4
#define FDT_END			9

/* All big-endian. */
struct fdt_header {
	u32 magic, totalsize;
	u32 off_struct, off_strings, off_reserve;
	u32 version, last_compatible;
	u32 boot_cpuid;
	u32 size_strings, size_struct;
};
static_assert(sizeof(struct fdt_header) == 40, "Devicetree Specification 5.2");
#define FDT_RESERVE_ENTRY	16	/* address and size; both zero in the last one */

static inline u32 fdt_get32(const void *p) { return __builtin_bswap32(get_unaligned_u32(p)); }
static inline void fdt_put32(u32 v, void *p) { put_unaligned_u32(__builtin_bswap32(v), p); }
#define fdt_header_get(fdt, field)	fdt_get32((const u8 *)(fdt) + offsetof(struct fdt_header, field))
#define fdt_header_set(fdt, field, v)	fdt_put32(v, (u8 *)(fdt) + offsetof(struct fdt_header, field))

static inline u32 fdt_totalsize(const void *fdt) { return fdt_header_get(fdt, totalsize); }

/* ---- check and read (fdt.c) ---- */

/* Whether the blob in the first bytes of [blob, blob + size) is well-formed in every part: header, blocks, tokens,
 * nesting, names, each within bounds. Time is bounded by FDT_SIZE_MAX. 0 or an error. */
int fdt_check(const void *blob, u64 size);

int fdt_subnode(const void *fdt, int node, const char *name);	/* the first of that name; NOTFOUND */
int fdt_first_subnode(const void *fdt, int node);		/* NOTFOUND: there is none */
int fdt_next_subnode(const void *fdt, int node);		/* the next sibling */
const char *fdt_node_name(const void *fdt, int node);
const void *fdt_getprop(const void *fdt, int node, const char *name, u32 *len);	/* NULL: no such property */
/* Whether the strings of `compatible` contain this one: 0 yes, 1 no, NOTFOUND without the property. */
int fdt_node_compatible(const void *fdt, int node, const char *compatible);
/* A property of exactly 8 (4) bytes. 0, NOTFOUND, or BADVALUE for another length. */
int fdt_getprop_u64(const void *fdt, int node, const char *name, u64 *value);
int fdt_getprop_u32(const void *fdt, int node, const char *name, u32 *value);

/* One token of the structure block. */
struct fdt_token {
	u32 kind, at, next;
	const char *name;		/* BEGIN_NODE, PROP */
	const u8 *value;		/* PROP */
	u32 len;
};
/* Decodes the token at an offset; BADSTRUCTURE when it does not fit into its block. */
int fdt_token(const void *fdt, u32 at, struct fdt_token *t);
/* Offset of `name` in a string table, also as the tail of a longer string; -1. */
int fdt_find_string(const char *strings, u32 size, const char *name);

/* ---- write (fdt_write.c) ---- */

/* After the first error nothing more is written, and fdt_finish() returns it. */
struct fdt_writer {
	u8 *buf;
	u32 size, at;			/* the structure block grows up to `at`, the strings down from the end */
	u32 size_strings;
	int depth, err;
	bool had_root;
};
void fdt_create(struct fdt_writer *w, void *buf, u64 size);
void fdt_begin_node(struct fdt_writer *w, const char *name);	/* "" for the root */
void fdt_property(struct fdt_writer *w, const char *name, const void *value, u32 len);
void fdt_property_string(struct fdt_writer *w, const char *name, const char *value);
void fdt_property_u64(struct fdt_writer *w, const char *name, u64 value);
void fdt_property_u32(struct fdt_writer *w, const char *name, u32 value);
void fdt_end_node(struct fdt_writer *w);
int fdt_finish(struct fdt_writer *w);				/* 0: the blob is complete */

/* ---- edit (fdt_edit.c) ---- */

/* The blob must be one that this kernel wrote; `room` is how many bytes it may have. An edit that fails changes
 * nothing. An edit invalidates offsets of nodes behind the place. */
int fdt_pack(void *fdt);					/* without gaps between the blocks */
int fdt_add_subnode(void *fdt, u64 room, int parent, const char *name);	/* the offset; EXISTS, NOSPACE */
int fdt_setprop(void *fdt, u64 room, int node, const char *name, const void *value, u32 len);
int fdt_setprop_u64(void *fdt, u64 room, int node, const char *name, u64 value);
int fdt_del_node(void *fdt, int node);
