/* differ.c's common part: dice, slots, and the line that every step prints.
 *
 * Descriptors are kept at fixed numbers ("slots"), so that a line names the same thing in every kernel, and what is drawn
 * depends on nothing that a kernel says but on which slots are in use.
 */
#pragma once
#include "t.h"
#include <sys/stat.h>

enum { DEVICES = 2, SESSIONS = 6, FILES = 10, MAPS = 4, KEEPERS = 2 };
enum { DEVICE = 40, SESSION = 50, FILE_ = 60, FLIGHT = 80 };	/* first descriptor of each kind */

static struct {
	uint64_t state;
	unsigned seed, step, depth;
	int phase;
	int noexec, late;		/* what Linux answers in its own way: see differ.c */
} d;

static struct {
	unsigned char *at;
	size_t size;
} maps[MAPS];

static pid_t keepers[KEEPERS];

/* Shared by all processes: inodes of files that were preserved once. */
static struct {
	unsigned count;
	struct { uint64_t device, inode; } file[1000];
} *known;

static uint64_t draw(void)
{
	uint64_t z = d.state += 0x9e3779b97f4a7c15;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static unsigned dice(unsigned n) { return (unsigned)(draw() >> 33) % n; }
static int chance(unsigned one_in) { return !dice(one_in); }
#define PICK(...) ({ static const __typeof__((__VA_ARGS__)) list_[] = { __VA_ARGS__ }; \
		list_[dice(sizeof(list_) / sizeof(*list_))]; })

static int in_use(int fd) { return fcntl(fd, F_GETFD) >= 0; }

/* One of `count` slots; mostly one that is in use, or that is not, whatever is wanted. */
static int slot(int first, int count, int used)
{
	int at = first + (int)dice((unsigned)count);

	if (chance(12))
		return at;
	for (int i = 0; i < count; i++, at = at + 1 < first + count ? at + 1 : first)
		if (in_use(at) == used)
			return at;
	return at;
}

static int a_file(void) { return slot(FILE_, FILES, 1); }
static int a_session(void) { return slot(SESSION, SESSIONS, 1); }
static int a_device(void) { return slot(DEVICE, DEVICES, 1); }

/* "f3" for the descriptor of the fourth file. */
static const char *name_of(int fd)
{
	static char text[4][16];
	static int turn;
	char *t = text[turn++ & 3];
	char kind = fd >= FLIGHT ? 'x' : fd >= FILE_ ? 'f' : fd >= SESSION ? 's' : fd >= DEVICE ? 'd' : '#';
	int base = fd >= FLIGHT ? FLIGHT : fd >= FILE_ ? FILE_ : fd >= SESSION ? SESSION : fd >= DEVICE ? DEVICE : 0;

	sprintf(t, "%c%d", kind, fd - base);
	return t;
}

/* The line of a step: what was called, and the result, -errno if it failed. Call it right behind the system call. */
#define SAY(result, ...) ({							\
	long r_ = (long)(result);						\
	int errno_ = errno;							\
	char what_[400];							\
	snprintf(what_, sizeof(what_), __VA_ARGS__);				\
	say("%u:%d.%u%s %s = %ld", d.seed, d.phase, d.step, d.depth ? "+" : "", what_, r_ < 0 ? -errno_ : r_);	\
	r_;									\
})

/* A new descriptor goes to its slot; what was there is closed. */
static long keep(long fd, int where, const char *what)
{
	if (SAY(fd < 0 ? fd : 0, "%s = %s %s%s", name_of(where), what, fd < 0 ? "" : fcntl((int)fd, F_GETFD) ? "cloexec" : "kept",
		fd >= 0 && in_use(where) ? ", closing" : "") < 0)
		return -1;
	dup3((int)fd, where, O_CLOEXEC);
	close((int)fd);
	return where;
}

/* The slot is chosen before the call: that asks the kernel, too, and errno is the call's. */
#define KEEP(where, what, call) ({ int where_ = (where); long fd_ = (call); keep(fd_, where_, what); })

static uint64_t hash(uint64_t h, const void *p, size_t n)
{
	for (const unsigned char *b = p; n--; b++)
		h = (h ^ *b) * 0x100000001b3;
	return h;
}
#define HASH 0xcbf29ce484222325

static int preserved_once(int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return 0;
	for (unsigned i = 0; i < known->count; i++)
		if (known->file[i].inode == st.st_ino && known->file[i].device == st.st_dev)
			return 1;
	return 0;
}

static void remember(int fd)
{
	struct stat st;

	if (known->count < 1000 && !fstat(fd, &st) && S_ISREG(st.st_mode)) {
		known->file[known->count].device = st.st_dev;
		known->file[known->count++].inode = st.st_ino;
	}
}
