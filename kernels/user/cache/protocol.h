/*
 * protocol.h - one client of the cache: the text protocol of memcached, as documented in its doc/protocol.txt
 *
 * Bytes come in by protocol_input() in whatever pieces the socket has them, what is to be answered collects in `out`. A
 * value that is being sent to the cache goes straight into the chunk that will be its item.
 */
#ifndef LUEMU_CACHE_PROTOCOL_H
#define LUEMU_CACHE_PROTOCOL_H

#include "store.h"

#define LINE_BYTES_MAX	8192

struct cache {
	struct store store;
	uint64_t started;		/* time(2) */
	uint64_t flush_at;		/* when a delayed flush_all is due, 0: none */
	uint64_t gets, hits, sets, deletes, touches, flushes, connections;
};

enum verb { SET, ADD, REPLACE, APPEND, PREPEND, CAS };

struct connection {
	struct cache *cache;
	int fd;
	bool closing;			/* after what is in `out` was sent */
	char line[LINE_BYTES_MAX + 2];
	size_t line_size;
	bool line_too_long;
	/* a value that is coming in */
	struct item *item;		/* NULL: it is swallowed */
	enum verb verb;
	uint64_t cas;
	bool noreply;
	uint64_t value_left;		/* bytes of the value that are still to come, */
	unsigned int end_left;		/* then those of its "\r\n" */
	bool bad_end;
	const char *refusal;		/* what a swallowed value is answered with */
	/* answers */
	char *out;
	size_t out_size, out_room, out_sent;
	bool out_of_memory;
};

void protocol_init(struct connection *c, struct cache *cache, int fd);
void protocol_input(struct connection *c, const char *bytes, size_t size);
void protocol_close(struct connection *c);

#endif
