/*
 * store.c - index and items of the cache (store.h)
 */
#define _GNU_SOURCE
#include "store.h"

#include <errno.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC		"LUCACHE1"
#define VERSION		1
#define HEADER_BYTES	4096
#define FIRST_CHUNK	64	/* offset 0 stands for nothing */
#define BUCKETS_MIN	1024
#define BUCKETS_MAX	(1U << 24)
#define BYTES_PER_BUCKET 4096

enum { FREE, USED, REACHED };

static uint64_t class_size(unsigned int class)
{
	uint64_t base = 64UL << class / 4;

	return base + base / 4 * (class % 4);
}

static unsigned int class_of(uint64_t size)
{
	unsigned int class = 0;

	while (class_size(class) < size)
		class++;
	return class;
}

uint64_t store_chunk_size(size_t key_size, size_t value_size)
{
	return class_size(class_of(sizeof(struct item) + key_size + value_size));
}

/* FNV-1a. */
static uint32_t hash_of(const char *key, size_t size)
{
	uint32_t hash = 2166136261u;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ (unsigned char)key[i]) * 16777619u;
	return hash;
}

static struct item *item_at(const struct store *store, uint64_t offset)
{
	return (struct item *)(store->base + offset);
}

static uint64_t offset_of(const struct store *store, const struct item *item)
{
	return (uint64_t)((const char *)item - store->base);
}

static uint64_t *bucket_of(const struct store *store, uint32_t hash)
{
	return &store->bucket[hash & (store->header->buckets - 1)];
}

/* Between what was written before and what will be written afterwards, for whoever looks when the machine stops. */
static void store_word(uint64_t *where, uint64_t value)
{
	__atomic_store_n(where, value, __ATOMIC_SEQ_CST);
	__asm__ volatile("" ::: "memory");
}

static void put_free(struct store *store, struct item *item)
{
	item->state = FREE;
	item->next = store->free[item->class];
	store->free[item->class] = offset_of(store, item);
}

/* ---- the two files ---- */

static int map(struct store *store, uint64_t index_size, uint64_t store_size)
{
	void *index = mmap(NULL, index_size, PROT_READ | PROT_WRITE, MAP_SHARED, store->index_fd, 0);
	void *base;

	if (index == MAP_FAILED)
		return -1;
	base = mmap(NULL, store_size, PROT_READ | PROT_WRITE, MAP_SHARED, store->store_fd, 0);
	if (base == MAP_FAILED) {
		munmap(index, index_size);
		return -1;
	}
	store->header = index;
	store->bucket = (uint64_t *)((char *)index + HEADER_BYTES);
	store->base = base;
	return 0;
}

static uint64_t index_size(uint32_t buckets)
{
	return HEADER_BYTES + 8UL * buckets;
}

int store_create(struct store *store, uint64_t size)
{
	uint32_t buckets = BUCKETS_MIN;

	memset(store, 0, sizeof(*store));
	if (size < STORE_BYTES_MIN || size > STORE_BYTES_MAX) {
		errno = EINVAL;
		return -1;
	}
	size = (size + 4095) & ~4095UL;
	while (buckets < BUCKETS_MAX && buckets < size / BYTES_PER_BUCKET)
		buckets *= 2;
	store->index_fd = memfd_create("cache-index", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (store->index_fd < 0)
		return -1;
	store->store_fd = memfd_create("cache-store", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (store->store_fd < 0)
		goto out_index;
	if (ftruncate(store->index_fd, (off_t)index_size(buckets)) < 0 || ftruncate(store->store_fd, (off_t)size) < 0 ||
	    map(store, index_size(buckets), size) < 0)
		goto out_store;
	*store->header = (struct index_header){
		.version = VERSION, .buckets = buckets, .store_size = size, .used = FIRST_CHUNK,
	};
	memcpy(store->header->magic, MAGIC, sizeof(store->header->magic));
	return 0;
out_store:
	close(store->store_fd);
out_index:
	close(store->index_fd);
	return -1;
}

static bool fits(const struct item *item)
{
	return item->class < STORE_CLASSES && item->key_size <= KEY_BYTES_MAX && item->value_size <= VALUE_BYTES_MAX &&
	       sizeof(*item) + item->key_size + item->value_size <= class_size(item->class);
}

static const char *check_header(const struct store *store, uint64_t index_bytes, uint64_t store_bytes)
{
	const struct index_header *h = store->header;

	if (memcmp(h->magic, MAGIC, sizeof(h->magic)) != 0 || h->version != VERSION)
		return "this is no index of a cache";
	if (h->buckets == 0 || (h->buckets & (h->buckets - 1)) != 0 || index_size(h->buckets) != index_bytes)
		return "the number of buckets does not fit the size of the index";
	if (h->store_size != store_bytes)
		return "the store has not the size that the index says";
	if (h->used < FIRST_CHUNK || h->used > h->store_size || h->used % 16 != 0)
		return "the used part of the store is impossible";
	return NULL;
}

/* Calls `each` for every chunk; stops at the first problem that it finds. */
static const char *walk(struct store *store, void (*each)(struct store *store, struct item *item))
{
	uint64_t at = FIRST_CHUNK;

	while (at < store->header->used) {
		struct item *item = item_at(store, at);
		uint64_t left = store->header->used - at;

		if (left < sizeof(*item) || item->class >= STORE_CLASSES || class_size(item->class) > left)
			return "a chunk of the store is damaged";
		at += class_size(item->class);
		if (each != NULL)
			each(store, item);
	}
	return NULL;
}

static void forget(struct store *store, struct item *item)
{
	(void)store;
	item->state = FREE;
}

static void collect(struct store *store, struct item *item)
{
	if (item->state == REACHED)
		item->state = USED;
	else
		put_free(store, item);
}

/* All items of a bucket. Each is reached once, so a chain that bites its tail is noticed. */
static const char *reach(struct store *store, uint32_t number)
{
	for (uint64_t at = store->bucket[number]; at != 0;) {
		struct item *item = item_at(store, at);

		if (at < FIRST_CHUNK || at % 16 != 0 || at > store->header->used - sizeof(*item))
			return "an item is outside the store";
		if (!fits(item) || class_size(item->class) > store->header->used - at)
			return "an item is larger than its chunk";
		if (item->hash != hash_of(item_key(item), item->key_size) ||
		    (item->hash & (store->header->buckets - 1)) != number)
			return "an item has another key than its place in the index says";
		if (item->state == REACHED)
			return "an item is reached twice";
		item->state = REACHED;
		store->items++;
		store->bytes += (uint64_t)item->key_size + item->value_size;
		at = item->next;
	}
	return NULL;
}

int store_open(struct store *store, int index_fd, int store_fd)
{
	struct stat index, data;

	memset(store, 0, sizeof(*store));
	store->index_fd = index_fd;
	store->store_fd = store_fd;
	store->problem = "the files cannot be mapped";
	if (fstat(index_fd, &index) < 0 || fstat(store_fd, &data) < 0 || index.st_size < HEADER_BYTES ||
	    data.st_size < (off_t)STORE_BYTES_MIN || map(store, (uint64_t)index.st_size, (uint64_t)data.st_size) < 0)
		return -1;
	store->problem = check_header(store, (uint64_t)index.st_size, (uint64_t)data.st_size);
	if (store->problem == NULL)
		store->problem = walk(store, forget);
	for (uint32_t i = 0; store->problem == NULL && i < store->header->buckets; i++)
		store->problem = reach(store, i);
	if (store->problem != NULL)
		return -1;
	walk(store, collect);
	return 0;
}

/* ---- items ---- */

/* The word that leads to the item, and through it to 0 if there is none. */
static uint64_t *find_link(struct store *store, const char *key, size_t key_size, uint32_t hash)
{
	uint64_t *link = bucket_of(store, hash);

	while (*link != 0) {
		struct item *item = item_at(store, *link);

		if (item->hash == hash && item->key_size == key_size && memcmp(item_key(item), key, key_size) == 0)
			break;
		link = &item->next;
	}
	return link;
}

static void unlink_item(struct store *store, uint64_t *link, uint64_t instead)
{
	struct item *old = item_at(store, *link);

	store_word(link, instead);
	store->items--;
	store->bytes -= (uint64_t)old->key_size + old->value_size;
	put_free(store, old);
}

struct item *store_find(struct store *store, const char *key, size_t key_size, uint32_t now)
{
	uint64_t *link = find_link(store, key, key_size, hash_of(key, key_size));
	struct item *item;

	if (*link == 0)
		return NULL;
	item = item_at(store, *link);
	if (item->expires == 0 || item->expires > now)
		return item;
	unlink_item(store, link, item->next);
	return NULL;
}

struct item *store_allocate(struct store *store, const char *key, size_t key_size, size_t value_size)
{
	unsigned int wanted = class_of(sizeof(struct item) + key_size + value_size);
	struct item *item = NULL;
	uint64_t size = class_size(wanted);

	if (store->free[wanted] == 0 && store->header->store_size - store->header->used >= size) {
		item = item_at(store, store->header->used);
		item->class = (uint8_t)wanted;
		item->state = FREE;
		store_word(&store->header->used, store->header->used + size);
	}
	for (unsigned int class = wanted; item == NULL && class < STORE_CLASSES; class++) {
		if (store->free[class] == 0)
			continue;
		item = item_at(store, store->free[class]);
		store->free[class] = item->next;
	}
	if (item == NULL)
		return NULL;
	item->next = 0;
	item->hash = hash_of(key, key_size);
	item->flags = item->expires = 0;
	item->key_size = (uint16_t)key_size;
	item->value_size = (uint32_t)value_size;
	item->state = USED;
	memcpy(item_key(item), key, key_size);
	return item;
}

void store_discard(struct store *store, struct item *item)
{
	put_free(store, item);
}

void store_publish(struct store *store, struct item *item)
{
	uint64_t *link = find_link(store, item_key(item), item->key_size, item->hash);

	item->cas = ++store->header->cas;
	store->items++;
	store->bytes += (uint64_t)item->key_size + item->value_size;
	if (*link != 0) {
		item->next = item_at(store, *link)->next;
		unlink_item(store, link, offset_of(store, item));
		return;
	}
	link = bucket_of(store, item->hash);
	item->next = *link;
	store_word(link, offset_of(store, item));
}

void store_remove(struct store *store, struct item *item)
{
	uint64_t *link = find_link(store, item_key(item), item->key_size, item->hash);

	if (*link != 0)
		unlink_item(store, link, item_at(store, *link)->next);
}

void store_clear(struct store *store)
{
	for (uint32_t i = 0; i < store->header->buckets; i++)
		while (store->bucket[i] != 0)
			unlink_item(store, &store->bucket[i], item_at(store, store->bucket[i])->next);
}
