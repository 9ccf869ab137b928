/*
 * many.c - thousands of sessions and files in one live update
 *
 *	many start [SESSIONS [FILES]]	that many sessions with a file each, and one more session with that many files
 *	many check [SESSIONS [FILES]]	all of them are there, in any order; everything is finished
 *
 * Contents, sizes and tokens follow from the numbers, so nothing but the numbers has to be known on the other side.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "luo.h"

#define SESSIONS	2000
#define FILES		2000
#define COUNT_MAX	200000
#define BULK		"many-files"
#define FILE_BYTES_MAX	9000		/* up to three pages */

static int fail(const char *what, unsigned int number)
{
	fprintf(stderr, "many: %s %u: %s\n", what, number, strerror(errno));
	return 1;
}

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static uint64_t token_of(unsigned int number) { return mix(number + 1) | 1; }

/* Contents of file `number`; how many bytes. Every eighth is empty. */
static size_t contents(unsigned int number, unsigned char bytes[FILE_BYTES_MAX])
{
	uint64_t seed = mix(number + 0x1234567);
	size_t size = number % 8 == 7 ? 0 : seed % FILE_BYTES_MAX;

	for (size_t i = 0; i < size; i++)
		bytes[i] = (unsigned char)(seed >> i % 57) + (unsigned char)i;
	return size;
}

static int make_file(unsigned int number)
{
	static unsigned char bytes[FILE_BYTES_MAX];
	size_t size = contents(number, bytes);
	int fd = memfd_create("many", MFD_CLOEXEC);

	if (fd >= 0 && write(fd, bytes, size) != (ssize_t)size) {
		close(fd);
		return -1;
	}
	return fd;
}

static int preserve(int session, unsigned int number)
{
	int fd = make_file(number), result;

	if (fd < 0)
		return -1;
	result = luo_preserve(session, fd, token_of(number));
	close(fd);		/* LUO keeps it */
	return result;
}

static int check_file(int session, unsigned int number)
{
	static unsigned char expected[FILE_BYTES_MAX], found[FILE_BYTES_MAX + 1];
	size_t size = contents(number, expected);
	int fd = luo_retrieve_fd(session, token_of(number));

	if (fd < 0)
		return fail("retrieve file", number);
	if (pread(fd, found, sizeof(found), 0) != (ssize_t)size || memcmp(found, expected, size) != 0) {
		fprintf(stderr, "many: file %u is not what it was\n", number);
		return 1;
	}
	close(fd);
	return 0;
}

static void session_name(unsigned int number, char name[32])
{
	snprintf(name, 32, "many-%u", number);
}

static int start(unsigned int sessions, unsigned int files)
{
	int device = luo_open(), bulk;
	char name[32];

	if (device < 0)
		return fail("open " LUO_DEVICE, 0);
	for (unsigned int i = 0; i < sessions; i++) {
		int session;

		session_name(i, name);
		session = luo_create(device, name);
		if (session < 0)
			return fail("create session", i);
		if (preserve(session, i) < 0)
			return fail("preserve the file of session", i);
	}
	bulk = luo_create(device, BULK);
	if (bulk < 0)
		return fail("create session " BULK, sessions);
	for (unsigned int i = 0; i < files; i++)
		if (preserve(bulk, sessions + i) < 0)
			return fail("preserve file", i);
	close(device);
	printf("many: %u sessions and %u files\n", sessions + 1, sessions + files);
	fflush(stdout);
	if (fork() == 0)	/* the sessions live as long as somebody has them open */
		for (;;)
			pause();
	return 0;
}

static int check(unsigned int sessions, unsigned int files)
{
	unsigned int bad = 0;
	int device = luo_open(), bulk;
	char name[32];

	if (device < 0)
		return fail("open " LUO_DEVICE, 0);
	for (unsigned int i = sessions; i-- > 0;) {		/* last to first: no order is promised */
		int session;

		session_name(i, name);
		session = luo_retrieve(device, name);
		if (session < 0)
			return fail("retrieve session", i);
		bad += (unsigned int)check_file(session, i);
		if (luo_finish(session) < 0)
			return fail("finish session", i);
		close(session);
	}
	bulk = luo_retrieve(device, BULK);
	if (bulk < 0)
		return fail("retrieve session " BULK, sessions);
	for (unsigned int i = 0; i < files; i++)
		bad += (unsigned int)check_file(bulk, sessions + (unsigned int)((uint64_t)i * 7919 % files));
	if (luo_finish(bulk) < 0)
		return fail("finish session " BULK, sessions);
	printf("many: %u sessions and %u files, %u bad\n", sessions + 1, sessions + files, bad);
	return bad != 0;
}

static unsigned int number(const char *text, unsigned int fallback)
{
	char *end;
	unsigned long value;

	if (text == NULL)
		return fallback;
	value = strtoul(text, &end, 10);
	return *text < '0' || *text > '9' || *end != '\0' || value > COUNT_MAX ? 0 : (unsigned int)value;
}

int main(int argc, char **argv)
{
	unsigned int sessions = number(argc > 2 ? argv[2] : NULL, SESSIONS);
	unsigned int files = number(argc > 3 ? argv[3] : NULL, FILES);
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	if (argc >= 2 && argc <= 4 && sessions > 0 && files > 0) {
		if (strcmp(argv[1], "start") == 0)
			return start(sessions, files);
		if (strcmp(argv[1], "check") == 0)
			return check(sessions, files);
	}
	fprintf(stderr, "usage: many start|check [SESSIONS [FILES]]\n");
	return 2;
}
