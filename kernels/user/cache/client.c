/*
 * client.c - a client of the cache that remembers what it was told (client.h)
 */
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <linux/memfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "serve.h"
#include "store.h"

#define MAGIC		"LULEDGER"
#define VERSION		1
#define KEYS_WANTED	2048
#define KEYS_MAX	(1U << 24)
#define VALUE_MIN	64
#define TRIES		2000	/* to connect, a millisecond each */
#define LINE_MAX_BYTES	512

__attribute__((format(printf, 1, 2))) static int wrong(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fputs("cache client: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	return -1;
}

/* What others must see only after all that was written before, and before all that follows. */
static void store_word(uint64_t *where, uint64_t value)
{
	__atomic_store_n(where, value, __ATOMIC_SEQ_CST);
	__asm__ volatile("" ::: "memory");
}

/* ---- what there is to say ---- */

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static size_t key_text(uint32_t key, char text[32])
{
	return (size_t)snprintf(text, 32, "key:%08x", key);
}

/* The value of a key in a version: its length is another one each time, by up to an eighth. */
static size_t make_value(const struct client *c, uint32_t key, uint32_t version, char *value)
{
	uint64_t seed = mix((uint64_t)key << 32 | version), at = 0;
	size_t size = c->ledger->value_max - seed % (c->ledger->value_max / 8);

	for (; at + 8 <= size; at += 8) {
		uint64_t word = seed + at * 0x9e3779b97f4a7c15ULL;

		word ^= word >> 29;
		memcpy(value + at, &word, 8);
	}
	memset(value + at, (int)(seed & 0x7f), size - at);
	return size;
}

/* ---- talking to the service ---- */

int client_connect(struct client *c)
{
	memset(c, 0, sizeof(*c));
	c->ledger_fd = -1;
	for (unsigned int i = 0; i < TRIES; i++) {
		const struct timespec pause = { .tv_nsec = 1000000 };

		c->fd = serve_connect();
		if (c->fd >= 0)
			break;
		if (errno != ENOENT && errno != ECONNREFUSED)
			break;
		nanosleep(&pause, NULL);
	}
	if (c->fd < 0)
		return wrong("no service: %s", strerror(errno));
	c->value = malloc(VALUE_BYTES_MAX + 2);
	return c->value == NULL ? wrong("no memory") : 0;
}

static int send_all(struct client *c, const char *bytes, size_t size)
{
	while (size > 0) {
		ssize_t n = send(c->fd, bytes, size, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return wrong("the service does not listen: %s", strerror(errno));
		bytes += n;
		size -= (size_t)n;
	}
	return 0;
}

static int fill_input(struct client *c)
{
	ssize_t n;

	do {
		n = read(c->fd, c->in, sizeof(c->in));
	} while (n < 0 && errno == EINTR);
	if (n <= 0)
		return wrong("the service is gone");
	c->in_at = 0;
	c->in_size = (size_t)n;
	return 0;
}

static int receive(struct client *c, char *bytes, size_t size)
{
	while (size > 0) {
		size_t n = c->in_size - c->in_at;

		if (n == 0) {
			if (fill_input(c) < 0)
				return -1;
			continue;
		}
		n = n < size ? n : size;
		memcpy(bytes, c->in + c->in_at, n);
		c->in_at += n;
		bytes += n;
		size -= n;
	}
	return 0;
}

/* One line without its end. */
static int receive_line(struct client *c, char line[LINE_MAX_BYTES])
{
	for (size_t size = 0; size < LINE_MAX_BYTES; size++) {
		if (receive(c, line + size, 1) < 0)
			return -1;
		if (line[size] == '\n') {
			line[size > 0 && line[size - 1] == '\r' ? size - 1 : size] = '\0';
			return 0;
		}
	}
	return wrong("the service answers with an endless line");
}

int client_stat(struct client *c, const char *name, uint64_t *value)
{
	char line[LINE_MAX_BYTES], start[64];
	bool found = false;

	snprintf(start, sizeof(start), "STAT %s ", name);
	if (send_all(c, "stats\r\n", 7) < 0)
		return -1;
	do {
		if (receive_line(c, line) < 0)
			return -1;
		if (strncmp(line, start, strlen(start)) == 0) {
			*value = strtoull(line + strlen(start), NULL, 10);
			found = true;
		}
	} while (strcmp(line, "END") != 0 && strncmp(line, "STAT", 4) == 0);
	return found ? 0 : wrong("the service has no %s", name);
}

/* ---- the ledger ---- */

static int map_ledger(struct client *c, uint64_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, c->ledger_fd, 0);

	if (p == MAP_FAILED)
		return wrong("the ledger cannot be mapped: %s", strerror(errno));
	c->ledger = p;
	return 0;
}

/* So many keys with values so large that they fill seven eighths of the store. */
static void plan(uint64_t store_size, uint32_t *keys, uint64_t *value_max)
{
	uint64_t room = store_size / 8 * 7, chunk = room / KEYS_WANTED;

	if (chunk > store_chunk_size(12, VALUE_BYTES_MAX))
		chunk = store_chunk_size(12, VALUE_BYTES_MAX);
	if (chunk < store_chunk_size(12, VALUE_MIN))
		chunk = store_chunk_size(12, VALUE_MIN);
	*value_max = VALUE_MIN;
	for (uint64_t step = VALUE_BYTES_MAX; step > 0; step /= 2)
		if (*value_max + step <= VALUE_BYTES_MAX && store_chunk_size(12, *value_max + step) <= chunk)
			*value_max += step;
	*keys = (uint32_t)(room / store_chunk_size(12, *value_max));
	if (*keys > KEYS_MAX)
		*keys = KEYS_MAX;
}

int client_new_ledger(struct client *c, uint64_t store_size)
{
	uint64_t value_max, size;
	uint32_t keys;

	plan(store_size, &keys, &value_max);
	size = sizeof(struct ledger) + (uint64_t)keys * sizeof(uint32_t);
	c->ledger_fd = memfd_create("cache-ledger", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (c->ledger_fd < 0 || ftruncate(c->ledger_fd, (off_t)size) < 0)
		return wrong("no memory for the ledger: %s", strerror(errno));
	if (map_ledger(c, size) < 0)
		return -1;
	memcpy(c->ledger->magic, MAGIC, sizeof(c->ledger->magic));
	c->ledger->version = VERSION;
	c->ledger->keys = keys;
	c->ledger->value_max = value_max;
	return 0;
}

int client_open_ledger(struct client *c, int fd)
{
	struct stat st;

	c->ledger_fd = fd;
	if (fstat(fd, &st) < 0 || st.st_size < (off_t)sizeof(struct ledger))
		return wrong("the ledger is too small");
	if (map_ledger(c, (uint64_t)st.st_size) < 0)
		return -1;
	if (memcmp(c->ledger->magic, MAGIC, sizeof(c->ledger->magic)) != 0 || c->ledger->version != VERSION ||
	    sizeof(struct ledger) + (uint64_t)c->ledger->keys * sizeof(uint32_t) != (uint64_t)st.st_size ||
	    c->ledger->value_max < VALUE_MIN || c->ledger->value_max > VALUE_BYTES_MAX)
		return wrong("this is no ledger");
	return 0;
}

/* ---- writing and checking ---- */

uint32_t client_next_key(const struct client *c)
{
	uint64_t number = c->ledger->issued;

	return (uint32_t)(number < c->ledger->keys ? number : mix(number) % c->ledger->keys);
}

int client_write(struct client *c, uint32_t key)
{
	struct ledger *l = c->ledger;
	char text[32], line[LINE_MAX_BYTES];
	uint32_t version = l->key[key] + 1;
	size_t size = make_value(c, key, version, c->value);

	key_text(key, text);
	snprintf(line, sizeof(line), "set %s %u 0 %zu\r\n", text, version, size);
	l->issued_key = key;
	l->issued_version = version;
	store_word(&l->issued, l->issued + 1);
	memcpy(c->value + size, "\r\n", 2);
	if (send_all(c, line, strlen(line)) < 0 || send_all(c, c->value, size + 2) < 0 || receive_line(c, line) < 0)
		return -1;
	if (strcmp(line, "STORED") != 0)
		return wrong("writing %s: %s", text, line);
	l->key[key] = version;
	l->acknowledged_key = key;
	store_word(&l->acknowledged, l->issued);
	return 0;
}

/* What the cache has of a key: 1 a value, of which the flags say which version it claims to be; 0 nothing. */
static int get(struct client *c, const char *key, uint32_t *version, char *value, size_t *size)
{
	char line[LINE_MAX_BYTES], name[64], end[2];
	unsigned long bytes;

	snprintf(line, sizeof(line), "get %s\r\n", key);
	if (send_all(c, line, strlen(line)) < 0 || receive_line(c, line) < 0)
		return -1;
	if (strcmp(line, "END") == 0)
		return 0;
	if (sscanf(line, "VALUE %63s %u %lu", name, version, &bytes) != 3 || strcmp(name, key) != 0 ||
	    bytes > VALUE_BYTES_MAX)
		return wrong("reading %s: %s", key, line);
	if (receive(c, value, bytes) < 0 || receive(c, end, 2) < 0 || receive_line(c, line) < 0)
		return -1;
	*size = bytes;
	return 1;
}

int client_check(struct client *c, struct verdict *v)
{
	struct ledger *l = c->ledger;
	char *expected = malloc(VALUE_BYTES_MAX);

	*v = (struct verdict){ .issued = l->issued, .acknowledged = l->acknowledged, .last_write_survived = true };
	if (expected == NULL)
		return wrong("no memory");
	for (uint32_t key = 0; key < l->keys; key++) {
		bool under_way = l->issued > l->acknowledged && key == l->issued_key;
		uint32_t version = 0;
		size_t size = 0;
		char text[32];
		int found;
		bool good;

		if (l->key[key] == 0 && !under_way)
			continue;
		key_text(key, text);
		found = get(c, text, &version, c->value, &size);
		if (found < 0)
			goto out;
		if (found == 0 && l->key[key] == 0)
			continue;	/* its first write had not arrived */
		v->keys++;
		v->bytes += size;
		good = found && (version == l->key[key] || (under_way && version == l->issued_version)) &&
		       make_value(c, key, version, expected) == size && memcmp(c->value, expected, size) == 0;
		if (found == 0) {
			v->lost++;
			wrong("%s is lost", text);
		} else if (!good) {
			v->corrupted++;
			wrong("%s is corrupted: version %u of %zu bytes, not %u", text, version, size, l->key[key]);
		} else if (under_way && version == l->issued_version) {
			v->in_flight = 1;
			l->key[key] = version;
		}
		if (!good && l->acknowledged > 0 && key == l->acknowledged_key)
			v->last_write_survived = false;
	}
	l->acknowledged = l->issued;
	free(expected);
	return 0;
out:
	free(expected);
	return -1;
}
