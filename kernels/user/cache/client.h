/*
 * client.h - a client of the cache that remembers what it was told
 *
 *	ledger (a memfd of the client's own)	how many writes it has sent, how many were acknowledged, and the
 *						version of each key in the last acknowledged write of it
 *
 * A value follows from its key and version, so the ledger tells every byte that the cache must have. One write may
 * be under way when the machine stops: sent, and not acknowledged. Of its key either version is right.
 */
#ifndef LUEMU_CACHE_CLIENT_H
#define LUEMU_CACHE_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ledger {
	char magic[8];
	uint32_t version;
	uint32_t keys;
	uint64_t value_max;	/* bytes of the longest value */
	uint64_t issued;	/* number of the last write that was sent */
	uint64_t acknowledged;	/* number of the last one that was acknowledged */
	uint32_t issued_key, issued_version;
	uint32_t acknowledged_key, reserved;
	uint32_t key[];		/* version of each, 0: never written */
};

struct client {
	int fd;			/* to the service */
	struct ledger *ledger;
	int ledger_fd;
	char *value;		/* room for the largest one */
	char in[65536];		/* what the service has sent and nobody has read */
	size_t in_size, in_at;
};

struct verdict {
	uint64_t keys, bytes;
	uint64_t lost, corrupted;
	bool last_write_survived;
	uint64_t in_flight;	/* 1: the write that was under way has arrived */
	uint64_t issued, acknowledged;
};

/* All of these return 0, or -1 after saying on stderr what is wrong. */
int client_connect(struct client *c);
int client_new_ledger(struct client *c, uint64_t store_size);
int client_open_ledger(struct client *c, int fd);
/* The value of a line "STAT name value" of the service. */
int client_stat(struct client *c, const char *name, uint64_t *value);
int client_write(struct client *c, uint32_t key);	/* its next version */
uint32_t client_next_key(const struct client *c);	/* any; each in its turn at first */
int client_check(struct client *c, struct verdict *verdict);

#endif
