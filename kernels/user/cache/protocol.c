/*
 * protocol.c - the text protocol of memcached (protocol.h)
 *
 * Commands: get gets gat gats, set add replace append prepend cas, delete incr decr touch, flush_all stats version
 * verbosity quit.
 */
#define _GNU_SOURCE
#include "protocol.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define VERSION_TEXT	"1.6-luemu"
#define WORDS_MAX	1024
#define MONTH		(60 * 60 * 24 * 30)	/* an expiry time up to this counts from now */
#define NUMBER_MAX	20			/* digits of a 64-bit number */

#define BAD_FORMAT	"CLIENT_ERROR bad command line format\r\n"
#define BAD_CHUNK	"CLIENT_ERROR bad data chunk\r\n"
#define TOO_LARGE	"SERVER_ERROR object too large for cache\r\n"
#define NO_ROOM		"SERVER_ERROR out of memory storing object\r\n"

struct word {
	char *text;
	size_t size;
};

struct words {
	struct word at[WORDS_MAX];
	unsigned int count;
};

/* ---- answers ---- */

static void put(struct connection *c, const void *bytes, size_t size)
{
	if (c->out_size + size > c->out_room) {
		size_t room = (c->out_size + size) * 2;
		char *bigger = realloc(c->out, room);

		if (bigger == NULL) {
			c->out_of_memory = true;
			return;
		}
		c->out = bigger;
		c->out_room = room;
	}
	memcpy(c->out + c->out_size, bytes, size);
	c->out_size += size;
}

static void say(struct connection *c, const char *text)
{
	put(c, text, strlen(text));
}

__attribute__((format(printf, 2, 3))) static void sayf(struct connection *c, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	say(c, text);
}

static void answer(struct connection *c, bool noreply, const char *text)
{
	if (!noreply)
		say(c, text);
}

/* ---- words ---- */

static bool is(const struct word *word, const char *text)
{
	return strlen(text) == word->size && memcmp(word->text, text, word->size) == 0;
}

static bool number(const struct word *word, uint64_t max, uint64_t *value)
{
	uint64_t n = 0;

	if (word->size == 0 || word->size > NUMBER_MAX)
		return false;
	for (size_t i = 0; i < word->size; i++) {
		unsigned int digit = (unsigned char)word->text[i] - '0';

		if (digit > 9 || n > (UINT64_MAX - digit) / 10)
			return false;
		n = n * 10 + digit;
	}
	*value = n;
	return n <= max;
}

static uint32_t now(void)
{
	return (uint32_t)time(NULL);
}

/* An expiry time as it is kept. Negative: it has expired already. */
static bool expiry(const struct word *word, uint32_t *expires)
{
	struct word digits = *word;
	bool negative = word->size > 0 && word->text[0] == '-';
	uint64_t value;

	if (negative) {
		digits.text++;
		digits.size--;
	}
	if (!number(&digits, INT32_MAX, &value))
		return false;
	if (negative)
		*expires = 1;
	else if (value == 0)
		*expires = 0;
	else
		*expires = (uint32_t)value + (value <= MONTH ? now() : 0);
	return true;
}

/* A last word of "noreply" is taken off. */
static bool take_noreply(struct words *w)
{
	if (w->count < 2 || !is(&w->at[w->count - 1], "noreply"))
		return false;
	w->count--;
	return true;
}

static bool good_key(const struct word *word)
{
	return word->size > 0 && word->size <= KEY_BYTES_MAX;
}

static struct item *find(struct connection *c, const struct word *key)
{
	return store_find(&c->cache->store, key->text, key->size, now());
}

/* ---- reading ---- */

static void get(struct connection *c, struct words *w, bool with_cas, bool touch)
{
	uint32_t expires = 0;
	unsigned int first = touch ? 2 : 1;

	if (w->count <= first) {
		say(c, "ERROR\r\n");
		return;
	}
	if (touch && !expiry(&w->at[1], &expires)) {
		say(c, "CLIENT_ERROR invalid exptime argument\r\n");
		return;
	}
	for (unsigned int i = first; i < w->count; i++) {
		struct item *item;

		if (!good_key(&w->at[i])) {
			say(c, BAD_FORMAT);
			return;
		}
		c->cache->gets++;
		item = find(c, &w->at[i]);
		if (item == NULL)
			continue;
		c->cache->hits++;
		if (touch)
			item->expires = expires;
		sayf(c, "VALUE %.*s %" PRIu32 " %" PRIu32, (int)item->key_size, item_key(item), item->flags,
		     item->value_size);
		if (with_cas)
			sayf(c, " %" PRIu64, item->cas);
		say(c, "\r\n");
		put(c, item_value(item), item->value_size);
		say(c, "\r\n");
	}
	say(c, "END\r\n");
}

/* ---- writing ---- */

static void swallow(struct connection *c, uint64_t size, const char *refusal)
{
	c->item = NULL;
	c->refusal = refusal;
	c->value_left = size;
	c->end_left = 2;
	c->bad_end = false;
}

static void set(struct connection *c, struct words *w, enum verb verb)
{
	unsigned int fields = verb == CAS ? 6 : 5;
	uint64_t flags, size;
	uint32_t expires;

	c->noreply = take_noreply(w);
	if (w->count < fields) {
		say(c, "ERROR\r\n");
		return;
	}
	if (w->count > fields || !good_key(&w->at[1]) || !number(&w->at[2], UINT32_MAX, &flags) ||
	    !expiry(&w->at[3], &expires) || !number(&w->at[4], INT32_MAX - 2, &size) ||
	    (verb == CAS && !number(&w->at[5], UINT64_MAX, &c->cas))) {
		say(c, BAD_FORMAT);
		return;
	}
	c->cache->sets++;
	c->verb = verb;
	swallow(c, size, NULL);
	if (size > VALUE_BYTES_MAX) {
		c->refusal = TOO_LARGE;
	} else {
		c->item = store_allocate(&c->cache->store, w->at[1].text, w->at[1].size, size);
		if (c->item == NULL)
			c->refusal = NO_ROOM;
	}
	if (c->item == NULL) {
		/* as in memcached: an old value must not outlive a newer one that could not be stored */
		struct item *old = verb == SET ? find(c, &w->at[1]) : NULL;

		if (old != NULL)
			store_remove(&c->cache->store, old);
		return;
	}
	c->item->flags = (uint32_t)flags;
	c->item->expires = expires;
}

/* The old value with the new one before or behind it. NULL: there is no room, or it gets too large. */
static struct item *joined(struct store *store, struct item *old, struct item *more, bool behind)
{
	uint64_t size = (uint64_t)old->value_size + more->value_size;
	struct item *item = NULL;

	if (size <= VALUE_BYTES_MAX)
		item = store_allocate(store, item_key(old), old->key_size, size);
	if (item == NULL)
		return NULL;
	item->flags = old->flags;
	item->expires = old->expires;
	memcpy(item_value(item), behind ? item_value(old) : item_value(more), behind ? old->value_size : more->value_size);
	memcpy(item_value(item) + (behind ? old->value_size : more->value_size),
	       behind ? item_value(more) : item_value(old), behind ? more->value_size : old->value_size);
	return item;
}

/* The whole value is there. What is answered. */
static const char *complete(struct connection *c)
{
	struct store *store = &c->cache->store;
	struct item *item = c->item, *old = store_find(store, item_key(item), item->key_size, now()), *both;
	const char *refusal = NULL;

	switch (c->verb) {
	case SET:
		break;
	case ADD:
		refusal = old != NULL ? "NOT_STORED\r\n" : NULL;
		break;
	case REPLACE:
		refusal = old == NULL ? "NOT_STORED\r\n" : NULL;
		break;
	case CAS:
		refusal = old == NULL ? "NOT_FOUND\r\n" : old->cas != c->cas ? "EXISTS\r\n" : NULL;
		break;
	case APPEND:
	case PREPEND:
		if (old == NULL) {
			refusal = "NOT_STORED\r\n";
			break;
		}
		both = joined(store, old, item, c->verb == APPEND);
		refusal = both == NULL ? NO_ROOM : NULL;
		if (both != NULL) {
			store_discard(store, item);
			item = both;
		}
		break;
	}
	if (refusal != NULL) {
		store_discard(store, item);
		return refusal;
	}
	store_publish(store, item);
	return "STORED\r\n";
}

static void value_complete(struct connection *c)
{
	const char *text = c->refusal;

	if (c->item != NULL && c->bad_end)
		store_discard(&c->cache->store, c->item);
	else if (c->item != NULL)
		text = complete(c);
	if (c->item != NULL && c->bad_end)
		text = BAD_CHUNK;
	c->item = NULL;
	answer(c, c->noreply, text);
}

static void delete(struct connection *c, struct words *w)
{
	bool noreply = take_noreply(w);
	struct item *item;

	if (w->count < 2 || w->count > 3) {
		say(c, "ERROR\r\n");
		return;
	}
	if (!good_key(&w->at[1]) || (w->count == 3 && !is(&w->at[2], "0"))) {
		say(c, BAD_FORMAT);
		return;
	}
	c->cache->deletes++;
	item = find(c, &w->at[1]);
	if (item != NULL)
		store_remove(&c->cache->store, item);
	answer(c, noreply, item != NULL ? "DELETED\r\n" : "NOT_FOUND\r\n");
}

static void count(struct connection *c, struct words *w, bool up)
{
	bool noreply = take_noreply(w);
	struct item *item, *result;
	struct word old;
	uint64_t delta, value;
	char text[NUMBER_MAX + 1];
	size_t size;

	if (w->count != 3) {
		say(c, "ERROR\r\n");
		return;
	}
	if (!good_key(&w->at[1])) {
		say(c, BAD_FORMAT);
		return;
	}
	if (!number(&w->at[2], UINT64_MAX, &delta)) {
		say(c, "CLIENT_ERROR invalid numeric delta argument\r\n");
		return;
	}
	item = find(c, &w->at[1]);
	if (item == NULL) {
		answer(c, noreply, "NOT_FOUND\r\n");
		return;
	}
	old = (struct word){ .text = item_value(item), .size = item->value_size };
	while (old.size > 0 && old.text[old.size - 1] == ' ')
		old.size--;
	if (!number(&old, UINT64_MAX, &value)) {
		say(c, "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n");
		return;
	}
	value = up ? value + delta : value > delta ? value - delta : 0;
	size = (size_t)snprintf(text, sizeof(text), "%" PRIu64, value);
	/* a number that gets shorter keeps its length, with spaces behind it */
	result = store_allocate(&c->cache->store, w->at[1].text, w->at[1].size,
				size > item->value_size ? size : item->value_size);
	if (result == NULL) {
		say(c, "SERVER_ERROR out of memory in incr\r\n");
		return;
	}
	result->flags = item->flags;
	result->expires = item->expires;
	memset(item_value(result), ' ', result->value_size);
	memcpy(item_value(result), text, size);
	store_publish(&c->cache->store, result);
	answer(c, noreply, text);
	answer(c, noreply, "\r\n");
}

static void touch(struct connection *c, struct words *w)
{
	bool noreply = take_noreply(w);
	struct item *item;
	uint32_t expires;

	if (w->count != 3) {
		say(c, "ERROR\r\n");
		return;
	}
	if (!good_key(&w->at[1])) {
		say(c, BAD_FORMAT);
		return;
	}
	if (!expiry(&w->at[2], &expires)) {
		say(c, "CLIENT_ERROR invalid exptime argument\r\n");
		return;
	}
	c->cache->touches++;
	item = find(c, &w->at[1]);
	if (item != NULL)
		item->expires = expires;
	answer(c, noreply, item != NULL ? "TOUCHED\r\n" : "NOT_FOUND\r\n");
}

/* ---- the rest ---- */

static void flush_all(struct connection *c, struct words *w)
{
	bool noreply = take_noreply(w);
	uint64_t delay = 0;

	if (w->count > 2 || (w->count == 2 && !number(&w->at[1], INT32_MAX, &delay))) {
		say(c, BAD_FORMAT);
		return;
	}
	c->cache->flushes++;
	if (delay == 0)
		store_clear(&c->cache->store);
	c->cache->flush_at = delay == 0 ? 0 : now() + delay;
	answer(c, noreply, "OK\r\n");
}

static void stats(struct connection *c)
{
	const struct cache *cache = c->cache;
	const struct store *s = &cache->store;

	sayf(c, "STAT pid %d\r\n", (int)getpid());
	sayf(c, "STAT uptime %" PRIu64 "\r\n", now() - cache->started);
	sayf(c, "STAT time %" PRIu32 "\r\n", now());
	say(c, "STAT version " VERSION_TEXT "\r\n");
	say(c, "STAT pointer_size 64\r\n");
	sayf(c, "STAT total_connections %" PRIu64 "\r\n", cache->connections);
	sayf(c, "STAT cmd_get %" PRIu64 "\r\n", cache->gets);
	sayf(c, "STAT cmd_set %" PRIu64 "\r\n", cache->sets);
	sayf(c, "STAT cmd_flush %" PRIu64 "\r\n", cache->flushes);
	sayf(c, "STAT cmd_touch %" PRIu64 "\r\n", cache->touches);
	sayf(c, "STAT get_hits %" PRIu64 "\r\n", cache->hits);
	sayf(c, "STAT get_misses %" PRIu64 "\r\n", cache->gets - cache->hits);
	sayf(c, "STAT curr_items %" PRIu64 "\r\n", s->items);
	sayf(c, "STAT bytes %" PRIu64 "\r\n", s->bytes);
	sayf(c, "STAT limit_maxbytes %" PRIu64 "\r\n", s->header->store_size);
	/* where the agent finds what it has to preserve */
	sayf(c, "STAT store_fd %d\r\n", s->store_fd);
	sayf(c, "STAT index_fd %d\r\n", s->index_fd);
	say(c, "END\r\n");
}

static void command(struct connection *c, struct words *w)
{
	const struct word *verb = &w->at[0];

	if (is(verb, "get"))
		get(c, w, false, false);
	else if (is(verb, "gets"))
		get(c, w, true, false);
	else if (is(verb, "gat"))
		get(c, w, false, true);
	else if (is(verb, "gats"))
		get(c, w, true, true);
	else if (is(verb, "set"))
		set(c, w, SET);
	else if (is(verb, "add"))
		set(c, w, ADD);
	else if (is(verb, "replace"))
		set(c, w, REPLACE);
	else if (is(verb, "append"))
		set(c, w, APPEND);
	else if (is(verb, "prepend"))
		set(c, w, PREPEND);
	else if (is(verb, "cas"))
		set(c, w, CAS);
	else if (is(verb, "delete"))
		delete(c, w);
	else if (is(verb, "incr"))
		count(c, w, true);
	else if (is(verb, "decr"))
		count(c, w, false);
	else if (is(verb, "touch"))
		touch(c, w);
	else if (is(verb, "flush_all"))
		flush_all(c, w);
	else if (is(verb, "stats") && w->count == 1)
		stats(c);
	else if (is(verb, "version"))
		say(c, "VERSION " VERSION_TEXT "\r\n");
	else if (is(verb, "verbosity"))
		answer(c, take_noreply(w), "OK\r\n");
	else if (is(verb, "quit"))
		c->closing = true;
	else
		say(c, "ERROR\r\n");
}

/* ---- input ---- */

static void line_complete(struct connection *c)
{
	static struct words words;	/* one line at a time */
	size_t size = c->line_size;
	char *at = c->line;

	c->line_size = 0;
	if (c->line_too_long) {
		c->line_too_long = false;
		say(c, "CLIENT_ERROR line too long\r\n");
		return;
	}
	if (size > 0 && at[size - 1] == '\r')
		size--;
	at[size] = '\0';
	words.count = 0;
	while (words.count < WORDS_MAX) {
		struct word *word = &words.at[words.count];

		while (*at == ' ')
			at++;
		if (*at == '\0')
			break;
		word->text = at;
		while (*at != ' ' && *at != '\0')
			at++;
		word->size = (size_t)(at - word->text);
		words.count++;
	}
	if (c->cache->flush_at != 0 && c->cache->flush_at <= now()) {
		c->cache->flush_at = 0;
		store_clear(&c->cache->store);
	}
	if (words.count == 0)
		say(c, "ERROR\r\n");
	else
		command(c, &words);
}

/* Bytes of a line up to its end or that of the input; how many were taken. */
static size_t line_input(struct connection *c, const char *bytes, size_t size)
{
	const char *end = memchr(bytes, '\n', size);
	size_t taken = end != NULL ? (size_t)(end - bytes) : size;

	if (c->line_size + taken > LINE_BYTES_MAX) {
		c->line_too_long = true;
		c->line_size = 0;
	} else if (!c->line_too_long) {
		memcpy(c->line + c->line_size, bytes, taken);
		c->line_size += taken;
	}
	if (end == NULL)
		return taken;
	line_complete(c);
	return taken + 1;
}

static size_t value_input(struct connection *c, const char *bytes, size_t size)
{
	size_t taken = size < c->value_left ? size : c->value_left;

	if (taken > 0) {
		if (c->item != NULL)
			memcpy(item_value(c->item) + c->item->value_size - c->value_left, bytes, taken);
		c->value_left -= taken;
		return taken;
	}
	/* after a wrong end the rest is a line of its own, as in memcached: up to the next "\n" it is swallowed */
	if (*bytes != (c->end_left == 2 ? '\r' : '\n'))
		c->bad_end = true;
	if (c->bad_end && *bytes != '\n')
		return 1;
	c->end_left = c->bad_end ? 0 : c->end_left - 1;
	if (c->end_left == 0)
		value_complete(c);
	return 1;
}

void protocol_input(struct connection *c, const char *bytes, size_t size)
{
	while (size > 0 && !c->closing) {
		size_t taken = c->value_left > 0 || c->end_left > 0 ? value_input(c, bytes, size) :
								       line_input(c, bytes, size);

		bytes += taken;
		size -= taken;
	}
}

void protocol_init(struct connection *c, struct cache *cache, int fd)
{
	memset(c, 0, sizeof(*c));
	c->cache = cache;
	c->fd = fd;
	cache->connections++;
}

void protocol_close(struct connection *c)
{
	if (c->item != NULL)
		store_discard(&c->cache->store, c->item);
	free(c->out);
	close(c->fd);
	c->item = NULL;
	c->out = NULL;
	c->fd = -1;
}
