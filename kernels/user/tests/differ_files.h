/* differ.c's files: whatever can be done to one, before it is preserved, while it is, and where it arrives. */
#pragma once
#include <setjmp.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <linux/falloc.h>
#include <linux/memfd.h>
#include "differ.h"

#define KIB	1024L
#define MIB	(1024 * KIB)
#define SEALS	0x3f
#define SEALS_WRITE	0x1e		/* what F_SEAL_EXEC brings along for a file that may be executed */
#define SEAL_EXEC	0x20

static unsigned char buffer[256 * KIB];

/* Offsets and lengths: around pages, mostly small. */
static long place(void)
{
	long base = PICK(0L, 0L, 4096L, 8192L, 12288L, 5 * 4096L, 64 * KIB);

	return base + PICK(0L, 0L, 0L, 1L, -1L, 7L, 100L, 2048L, 4095L) + (base ? 0 : chance(4));
}

static long length(void)
{
	return PICK(0L, 1L, 8L, 100L, 4095L, 4096L, 4096L, 4097L, 8192L, 9000L, 20000L, 64 * KIB, 200 * KIB);
}

static void fill(size_t n)
{
	uint64_t x = draw();

	for (size_t i = 0; i < n; i++) {
		x = x * 6364136223846793005 + 1442695040888963407;
		buffer[i] = (unsigned char)(x >> 56);
	}
}

/* All that can be seen of a file. */
static void status(int fd)
{
	struct stat st;
	uint64_t h = HASH;
	char link[64] = "", path[64];
	long got, at = 0;

	if (fstat(fd, &st)) {
		SAY(-1, "status %s", name_of(fd));
		return;
	}
	while (S_ISREG(st.st_mode) && at < 4 * MIB && (got = pread(fd, buffer, sizeof(buffer), at)) > 0) {
		h = hash(h, buffer, (size_t)got);
		at += got;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	got = readlink(path, link, sizeof(link) - 1);
	link[got < 0 ? 0 : strcspn(link, ":#")] = '\0';	/* a number may follow */
	SAY(0, "status %s %s size %ld blocks %ld mode %o links %ld pos %ld seals %x flags %x read %ld %016lx",
	    name_of(fd), link, S_ISREG(st.st_mode) ? (long)st.st_size : 0, S_ISREG(st.st_mode) ? (long)st.st_blocks : 0, st.st_mode, (long)st.st_nlink,
	    (long)lseek(fd, 0, SEEK_CUR), fcntl(fd, F_GET_SEALS), fcntl(fd, F_GETFL), at, h);
}

static void new_memfd(void)
{
	unsigned flags = PICK(0U, 2U, 2U, 2U, 2U, 2U, 3U, 3U, 8U, 10U, 16U, 18U, 18U, 24U, 32U, 4U, 6U, 4U | 21U << 26,
			      1U << 26);
	int n = PICK(1, 1, 1, 1, 1, 0, 5, 249, 250);
	char name[300];

	memset(name, 'm', sizeof(name));
	name[n] = '\0';
	KEEP(slot(FILE_, FILES, 0), flags & 8 ? "memfd noexec" : flags & 4 ? "memfd huge" : "memfd", memfd_create(name, flags));
}

static void new_file(void)
{
	int where = slot(FILE_, FILES, 0), two[2];
	const char *name = PICK("/tmp/a", "/tmp/b");

	switch (dice(12)) {
	case 0: case 1:
		keep(open("/tmp", O_TMPFILE | O_RDWR, 0600), where, "tmpfile");
		break;
	case 2:
		keep(open(name, O_RDWR | O_CREAT | (chance(2) ? O_TRUNC : 0), 0640), where, name);
		break;
	case 3:
		keep(open(name, PICK(O_RDONLY, O_WRONLY, O_RDWR | O_APPEND, O_PATH)), where, name);
		break;
	case 4:
		SAY(unlink(name), "unlink %s", name);
		break;
	case 5:
		keep(open(PICK("/dev/null", "/dev/zero", "/tmp", "/none"), O_RDONLY), where, "other file");
		break;
	case 6:
		if (!pipe(two)) {
			close(two[1]);
			keep(two[0], where, "pipe");
		}
		break;
	case 7:
		keep(socket(AF_UNIX, SOCK_STREAM, 0), where, "socket");
		break;
	case 8: case 9: {
		int other = PICK(0, 0, 0, 1) ? a_session() : a_file();

		keep(dup(other), where, "dup");
		break;
	}
	default: {
		int other = a_file();
		int how = PICK(O_RDWR, O_RDWR, O_RDONLY, O_WRONLY, O_PATH, O_RDWR | O_TRUNC, O_RDWR | O_APPEND);
		char path[64], what[64];

		snprintf(path, sizeof(path), "/proc/self/fd/%d", other);
		snprintf(what, sizeof(what), "reopened %s with %x", name_of(other), how);
		KEEP(where, what, open(path, how));
	}
	}
}

static void write_file(int fd)
{
	size_t n = (size_t)length();
	int at = chance(2);
	long pos = at ? place() : 0;
	struct stat st = { 0 };

	if (fstat(fd, &st) || S_ISFIFO(st.st_mode))	/* a full pipe would be waited for */
		return;
	fill(n);
	if (chance(40))
		SAY(write(fd, chance(2) ? BAD : KERNEL, n), "write %s %zu from nowhere", name_of(fd), n);
	else if (at)
		SAY(pwrite(fd, buffer, n, pos), "pwrite %s %zu at %ld", name_of(fd), n, pos);
	else
		SAY(write(fd, buffer, n), "write %s %zu", name_of(fd), n);
}

static void read_file(int fd)
{
	size_t n = (size_t)length();
	int at = chance(2);
	long pos = at ? place() : 0, got;
	char text[80];

	if (!in_use(fd) || fcntl(fd, F_GETFL) & O_NONBLOCK)
		return;
	memset(buffer, 0xee, n);
	got = at ? pread(fd, buffer, n, pos) : S_ISREG(({ struct stat st = { 0 }; fstat(fd, &st); st.st_mode; }))
						? read(fd, buffer, n) : 0;
	snprintf(text, sizeof(text), "%s %s %zu at %ld: %016lx", at ? "pread" : "read", name_of(fd), n, pos, hash(HASH, buffer, n));
	SAY(got, "%s", text);
}

static void seek_file(int fd)
{
	int whence = PICK(SEEK_SET, SEEK_SET, SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE, 9);
	long at = chance(20) ? PICK(-1L, INT64_MAX, INT64_MIN, 1L << 40) : place();

	SAY(lseek(fd, at, whence), "lseek %s %ld %d", name_of(fd), at, whence);
}

static void resize_file(int fd)
{
	long size = chance(16) ? PICK(-1L, INT64_MAX, 1L << 44, (1L << 44) + 4096, 1L << 40, 3 * MIB) : place();

	SAY(ftruncate(fd, size), "ftruncate %s %ld", name_of(fd), size);
}

static void allocate(int fd)
{
	int mode = PICK(0, 0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE, 3, 3, 3, 3, 2, 8, 16, 32, 64);
	long at = chance(20) ? PICK(-1L, INT64_MAX, -4096L) : place();
	long n = chance(20) ? PICK(-1L, INT64_MIN) : length();

	SAY(fallocate(fd, mode, at, n), "fallocate %s mode %d at %ld %ld", name_of(fd), mode, at, n);
}

static void seal_file(int fd)
{
	unsigned seals = chance(10) ? PICK(0U, 0x40U, 0x80000000U, 0x3fU) : PICK(1U, 2U, 4U, 8U, 0x10U, 0x20U, 6U, 2U, 4U);

	if (!d.late && preserved_once(fd))
		return;
	SAY(fcntl(fd, F_ADD_SEALS, seals), "seal %s %x", name_of(fd), seals);
}

static int huge(int fd)
{
	struct statfs fs = { 0 };

	fstatfs(fd, &fs);
	return fs.f_type == 0x958458f6;
}

static void other_call(int fd)
{
	int to = a_file();
	long at = place(), n = length();

	switch (dice(12)) {
	case 0:
		SAY(fchmod(fd, 0600), "fchmod %s", name_of(fd));
		break;
	case 1:
		SAY(fchmod(fd, 0777), "fchmod %s", name_of(fd));
		break;
	case 2:
		SAY(fcntl(fd, F_SETFL, PICK(0, O_APPEND, O_RDONLY)), "F_SETFL %s", name_of(fd));
		break;
	case 3: case 4: {
		struct stat one = { 0 }, two = { 0 };
		off_t from = at;

		fstat(fd, &one);
		fstat(to, &two);
		if (S_ISREG(one.st_mode) && S_ISREG(two.st_mode) && !huge(fd) && !huge(to) &&
		    (one.st_ino != two.st_ino || one.st_dev != two.st_dev))	/* what copies onto itself does is not said */
			SAY(sendfile(to, fd, &from, (size_t)n), "sendfile %s to %s at %ld %ld", name_of(fd), name_of(to), at, n);
		break;
	}
	case 5:
		SAY(fsync(fd), "fsync %s", name_of(fd));
		break;
	case 6:
		SAY(fchown(fd, 5, 6), "fchown %s", name_of(fd));
		break;
	case 7:
		SAY(fcntl(fd, F_GET_SEALS), "seals of %s", name_of(fd));
		break;
	case 8:
		to = PICK(0, 3, 4, 9);
		SAY(syscall(SYS_fadvise64, fd, at, n, to), "fadvise %s at %ld %ld: %d", name_of(fd), at, n, to);
		break;
	case 9:
		SAY(fcntl(fd, F_DUPFD, -1), "F_DUPFD -1 %s", name_of(fd));
		break;
	default:
		SAY(close(fd), "close %s", name_of(fd));
	}
}

/* ---- mapped ---- */

static sigjmp_buf fault;
static volatile int touching;

static void faulted(int sig)
{
	if (!touching) {
		say("%u:%d.%u the program itself faulted", d.seed, d.phase, d.step);
		_exit(1);
	}
	siglongjmp(fault, sig);
}

static int a_map(int used)
{
	int at = (int)dice(MAPS);

	for (int i = 0; i < MAPS; i++, at = (at + 1) % MAPS)
		if (!!maps[at].at == used)
			return at;
	return at;
}

static void map_file(int fd)
{
	int i = a_map(0), prot = PICK(3, 3, 3, 1, 2, 0), flags = PICK(MAP_SHARED, MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE);
	size_t n = (size_t)length();
	long at = PICK(0L, 0L, 4096L, 8192L, 100L);
	void *p = mmap(NULL, n, prot, flags, fd, at);

	if (SAY(p == MAP_FAILED ? -1 : 0, "m%d = mmap %s %zu at %ld prot %d flags %d", i, name_of(fd), n, at, prot, flags) < 0)
		return;
	if (maps[i].at)
		munmap(maps[i].at, maps[i].size);
	maps[i].at = p;
	maps[i].size = n;
}

static void touch_map(int i, int writing)
{
	static volatile unsigned char *p;	/* none of these is in a register that a fault loses */
	static size_t at, n;
	static uint64_t h;
	int sig;

	p = maps[i].at;
	h = HASH;
	if (!p)
		return;
	at = dice((unsigned)maps[i].size + 1);
	if (chance(2))
		at = 0;
	n = PICK(1U, 8U, 100U, 4096U, 9000U, 70000U);
	n = n < maps[i].size - at ? n : maps[i].size - at;
	fill(n);
	touching = 1;
	sig = sigsetjmp(fault, 1);
	if (!sig)
		for (size_t k = 0; k < n; k++) {
			unsigned char c = buffer[k];

			if (writing)
				p[at + k] = c;
			else
				c = p[at + k], h = hash(h, &c, 1);
		}
	touching = 0;
	SAY(sig, "%s m%d %zu at %zu: %016lx, signal", writing ? "poke" : "peek", i, n, at, sig ? 0 : h);
}

static void change_map(int i)
{
	unsigned char *p = maps[i].at;
	size_t at, n;
	void *to;

	if (!p)
		return;
	at = (size_t)PICK(0, 0, 4096, 8192, 100);
	n = (size_t)length();
	switch (dice(7)) {
	case 0: case 1:
		SAY(munmap(p, maps[i].size), "munmap m%d", i);
		maps[i].at = NULL;
		break;
	case 2:
		n = n ? n : 4096;
		to = mremap(p, maps[i].size, n, MREMAP_MAYMOVE);
		if (SAY(to == MAP_FAILED ? -1 : 0, "mremap m%d to %zu", i, n) >= 0) {
			maps[i].at = to;
			maps[i].size = n;
		}
		break;
	case 3: {
		int prot = PICK(0, 1, 3, 3);

		SAY(mprotect(p, maps[i].size, prot), "mprotect m%d %d", i, prot);
		break;
	}
	case 4:
		SAY(msync(p, maps[i].size, MS_SYNC), "msync m%d", i);
		break;
	default: {
		int advice = PICK(MADV_DONTNEED, MADV_REMOVE, MADV_REMOVE, MADV_WILLNEED, MADV_NORMAL, MADV_COLD, 99);

		if (at + n > ((maps[i].size + 4095) & ~4095UL))	/* what comes behind it is not the same everywhere */
			n = 0;
		SAY(madvise(p + at, n, advice), "madvise m%d %zu at %zu: %d", i, n, at, advice);
	}
	}
}

static void file_step(void)
{
	unsigned what = dice(40);
	int fd = a_file();

	if (what < 6)
		new_memfd();
	else if (what < 9)
		new_file();
	else if (what < 14)
		write_file(fd);
	else if (what < 16)
		read_file(fd);
	else if (what < 19)
		seek_file(fd);
	else if (what < 22)
		resize_file(fd);
	else if (what < 24)
		allocate(fd);
	else if (what < 26)
		seal_file(fd);
	else if (what < 28)
		other_call(fd);
	else if (what < 31)
		map_file(fd);
	else if (what < 35)
		touch_map(a_map(1), !chance(3));
	else if (what < 38)
		change_map(a_map(1));
	else
		status(fd);
}
