/*
 * sparse.c - files that are not simply full: holes, odd sizes, large folios, seals, positions
 *
 *	sparse start	makes one of each and preserves them
 *	sparse check	they are there, to the byte, with size, position and seals
 *
 * What Linux 7.2 gets wrong is not in the table: a file made with MFD_NOEXEC_SEAL, and seals that are added after the
 * file was preserved.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "luo.h"

#define SESSION	"sparse"
#define PAGE	4096L
#define MIB	(1L << 20)

struct extent {
	long start, size;
};

/* `extents` are written, the rest are holes; it ends with a size of 0. `seals` are added when the file is made. */
static const struct file {
	const char *what;
	long size, position;
	int seals;
	bool huge;
	struct extent extents[6];
} files[] = {
	{ "empty", 0, 0, 0, false, { { 0, 0 } } },
	{ "empty, with a position", 0, 77, 0, false, { { 0, 0 } } },
	{ "one byte", 1, 1, 0, false, { { 0, 1 } } },
	{ "a page", PAGE, 0, F_SEAL_SHRINK, false, { { 0, PAGE } } },
	{ "a page and a byte", PAGE + 1, PAGE, F_SEAL_GROW, false, { { 0, PAGE + 1 } } },
	{ "a byte less than a page", PAGE - 1, 5, F_SEAL_SEAL, false, { { 0, PAGE - 1 } } },
	{ "nothing but a hole", 3 * MIB + 123, 0, 0, false, { { 0, 0 } } },
	{ "a hole, then a byte", MIB, MIB, 0, false, { { MIB - 1, 1 } } },
	{ "a byte, then a hole", MIB, 0, 0, false, { { 0, 1 } } },
	{ "islands", 10 * MIB + 3, 4097, F_SEAL_SHRINK | F_SEAL_GROW, false,
	  { { 0, 10 }, { PAGE - 3, 7 }, { MIB, 3 * PAGE }, { 5 * MIB + 100, 1 }, { 10 * MIB, 3 } } },
	{ "a position beyond the end", 100, 1L << 40, 0, false, { { 0, 100 } } },
	{ "future writes are sealed", 2 * PAGE, 0, F_SEAL_FUTURE_WRITE, false, { { 0, 2 * PAGE } } },
	{ "writes are sealed", 2 * PAGE + 9, 9, F_SEAL_WRITE, false, { { 0, 2 * PAGE + 9 } } },
	{ "every seal", 3 * PAGE, 0, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL, false,
	  { { PAGE, PAGE } } },
	{ "large folios", 4 * MIB, 0, 0, true, { { 0, 4 * MIB } } },
	{ "large folios and an odd end", 6 * MIB + 4097, 6 * MIB, 0, true, { { 0, 6 * MIB + 4097 } } },
	{ "a large folio among holes", 8 * MIB, 0, 0, true, { { 2 * MIB, 2 * MIB } } },
};
#define FILES	(sizeof(files) / sizeof(files[0]))

static int fail(const char *what, const struct file *file)
{
	fprintf(stderr, "sparse: %s (%s): %s\n", what, file != NULL ? file->what : SESSION, strerror(errno));
	return 1;
}

static unsigned char byte_at(const struct file *file, long at)
{
	uint64_t x = (uint64_t)(file - files + 1) * 0x9e3779b97f4a7c15ULL + (uint64_t)at * 0xbf58476d1ce4e5b9ULL;

	return (unsigned char)(x >> 56 | 1);	/* never 0: a hole is another thing */
}

static int make(const struct file *file)
{
	int fd = memfd_create(file->what, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	unsigned char *map;

	if (fd < 0 || ftruncate(fd, file->size) < 0)
		return -1;
	if (file->size > 0) {
		map = mmap(NULL, (size_t)file->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			return -1;
		if (file->huge)
			madvise(map, (size_t)file->size, MADV_HUGEPAGE);	/* a kernel without them takes small ones */
		for (const struct extent *e = file->extents; e->size > 0; e++)
			for (long at = e->start; at < e->start + e->size; at++)
				map[at] = byte_at(file, at);
		munmap(map, (size_t)file->size);
	}
	if (lseek(fd, file->position, SEEK_SET) != file->position)
		return -1;
	return file->seals != 0 && fcntl(fd, F_ADD_SEALS, file->seals) < 0 ? -1 : fd;
}

static int start(void)
{
	int device = luo_open(), session;

	if (device < 0)
		return fail("open " LUO_DEVICE, NULL);
	session = luo_create(device, SESSION);
	if (session < 0)
		return fail("create the session", NULL);
	close(device);
	for (size_t i = 0; i < FILES; i++) {
		int fd = make(&files[i]);

		if (fd < 0)
			return fail("make", &files[i]);
		if (luo_preserve(session, fd, i + 1) < 0)
			return fail("preserve", &files[i]);
		close(fd);
	}
	printf("sparse: %zu files\n", FILES);
	fflush(stdout);
	if (fork() == 0)
		for (;;)
			pause();
	return 0;
}

static int wrong(const struct file *file, const char *what, long found, long wanted)
{
	fprintf(stderr, "sparse: %s: %s is %ld, not %ld\n", file->what, what, found, wanted);
	return 1;
}

/* A stretch in which every byte is the same kind: written, or a hole; where it ends. */
static long stretch(const struct file *file, long at, bool *written)
{
	long end = file->size;

	*written = false;
	for (const struct extent *e = file->extents; e->size > 0; e++) {
		if (at >= e->start && at < e->start + e->size) {
			*written = true;
			return e->start + e->size;
		}
		if (at < e->start && e->start < end)
			end = e->start;
	}
	return end;
}

static int check_contents(const struct file *file, int fd)
{
	unsigned char *map;
	int bad = 0;

	if (file->size == 0)
		return 0;
	map = mmap(NULL, (size_t)file->size, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return fail("map", file);
	for (long at = 0; at < file->size && bad == 0;) {
		bool written;
		long end = stretch(file, at, &written);

		while (at < end && map[at] == (written ? byte_at(file, at) : 0))
			at++;
		if (at < end) {
			fprintf(stderr, "sparse: %s: byte %ld is %#x\n", file->what, at, map[at]);
			bad = 1;
		}
	}
	munmap(map, (size_t)file->size);
	return bad;
}

static int check_file(const struct file *file, int fd)
{
	struct stat st;
	int bad = 0, seals = fcntl(fd, F_GET_SEALS);
	long position = lseek(fd, 0, SEEK_CUR);

	if (fstat(fd, &st) < 0)
		return fail("stat", file);
	if (st.st_size != file->size)
		bad += wrong(file, "the size", st.st_size, file->size);
	if (position != file->position)
		bad += wrong(file, "the position", position, file->position);
	if (seals != file->seals)
		bad += wrong(file, "the seals", seals, file->seals);
	bad += check_contents(file, fd);
	/* what a seal forbids is forbidden, what none forbids is not */
	if ((ftruncate(fd, file->size + PAGE) == 0) == ((file->seals & F_SEAL_GROW) != 0))
		bad += wrong(file, "growing allowed", (file->seals & F_SEAL_GROW) != 0, (file->seals & F_SEAL_GROW) == 0);
	return bad;
}

static int check(void)
{
	int device = luo_open(), session, bad = 0;

	if (device < 0)
		return fail("open " LUO_DEVICE, NULL);
	session = luo_retrieve(device, SESSION);
	if (session < 0)
		return fail("retrieve the session", NULL);
	for (size_t i = 0; i < FILES; i++) {
		int fd = luo_retrieve_fd(session, i + 1);

		if (fd < 0) {
			bad += fail("retrieve", &files[i]);
			continue;
		}
		bad += check_file(&files[i], fd);
		close(fd);
	}
	if (luo_finish(session) < 0)
		bad += fail("finish", NULL);
	printf("sparse: %zu files, %d bad\n", FILES, bad);
	return bad != 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "start") == 0)
		return start();
	if (argc == 2 && strcmp(argv[1], "check") == 0)
		return check();
	fprintf(stderr, "usage: sparse start|check\n");
	return 2;
}
