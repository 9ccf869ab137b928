/*
 * store.h - what the cache keeps: an index and the items that it leads to, each in a memfd
 *
 *	index	header | bucket[0] … bucket[n - 1]	offset of the first item with that hash, 0: none
 *	store	chunk | chunk | …			each an item or free, one after the other up to header.used
 *
 * Both are mapped, and are all there is: no pointer leads from them to anything else, so the two files are the cache,
 * also for a service that starts again, in another kernel.
 *
 * The machine may stop at any instruction. So an item is complete before one 8-byte store makes it reachable, and an old
 * one is unreachable before it is free. Everything else (free lists, number of items) is found out again from these two
 * facts when the store is opened, and nothing in the files is believed before it was checked.
 */
#ifndef LUEMU_CACHE_STORE_H
#define LUEMU_CACHE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_BYTES_MIN		(64UL << 10)
#define STORE_BYTES_MAX		(1UL << 46)
#define KEY_BYTES_MAX		250
#define VALUE_BYTES_MAX		(1U << 20)
#define STORE_CLASSES		58	/* four to each power of two, from 64 bytes to 1.25 MiB */

struct item {
	uint64_t next;			/* offset of the next one in its bucket, 0: none */
	uint64_t cas;			/* changes with each change of the item */
	uint32_t hash;
	uint32_t flags;			/* the client's */
	uint32_t value_size;
	uint32_t expires;		/* time(2), 0: never */
	uint16_t key_size;
	uint8_t class;			/* of the chunk, whether or not it is in use */
	uint8_t state;			/* of no use between two openings */
	uint32_t reserved;
	char data[];			/* key, then value */
};

struct index_header {
	char magic[8];
	uint32_t version;
	uint32_t buckets;		/* a power of two */
	uint64_t store_size;
	uint64_t used;			/* bytes of the store that are chunks */
	uint64_t cas;			/* last one given */
};

struct store {
	int index_fd, store_fd;
	struct index_header *header;
	uint64_t *bucket;
	char *base;			/* of the store */
	uint64_t items, bytes;		/* bytes of keys and values */
	uint64_t free[STORE_CLASSES];	/* offset of the first free chunk of each class */
	const char *problem;		/* why it could not be opened */
};

/* Bytes of the chunk that an item needs. */
uint64_t store_chunk_size(size_t key_size, size_t value_size);

/* A new, empty one of `size` bytes. 0, or -1 with errno. */
int store_create(struct store *store, uint64_t size);
/* What is in these files. 0, or -1 with `problem` saying what is wrong with them. */
int store_open(struct store *store, int index_fd, int store_fd);

/* The item, or NULL. One that has expired by `now` is no more. */
struct item *store_find(struct store *store, const char *key, size_t key_size, uint32_t now);
/* A chunk with room for an item that nobody sees yet, key and sizes filled in; NULL: there is no room. */
struct item *store_allocate(struct store *store, const char *key, size_t key_size, size_t value_size);
/* Give it back, unseen. */
void store_discard(struct store *store, struct item *item);
/* Make it the item of its key, in place of one that there may be. */
void store_publish(struct store *store, struct item *item);
void store_remove(struct store *store, struct item *item);
void store_clear(struct store *store);

static inline char *item_key(struct item *item) { return item->data; }
static inline char *item_value(struct item *item) { return item->data + item->key_size; }

#endif
