/* What files in memory, and calls on files of other kinds, answer where a random comparison with Linux (differ.c) found that
 * ours answered otherwise. One line each, see t.h.
 */
#include "t.h"
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <linux/falloc.h>
#include <linux/memfd.h>

#define PAGE	4096L

static char page[3 * PAGE];

static void sealed(void)
{
	int fd = memfd_create("m", MFD_ALLOW_SEALING);

	T(ftruncate(fd, PAGE));
	T(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW));
	T(fallocate(fd, FALLOC_FL_KEEP_SIZE, PAGE, PAGE));
	T(fallocate(fd, 0, 0, PAGE));
	close(fd);
}

static void holes(void)
{
	int fd = memfd_create("m", 0);
	char *m;

	T(ftruncate(fd, 8 * PAGE));
	T(fallocate(fd, 0, PAGE, 3 * PAGE));
	T(lseek(fd, 0, SEEK_DATA));		/* provided, but no data yet */
	T(pwrite(fd, "x", 1, 2 * PAGE));
	T(lseek(fd, 0, SEEK_DATA));
	T(fallocate(fd, 0, PAGE, PAGE));	/* provided twice */
	T(lseek(fd, 0, SEEK_DATA));
	T(lseek(fd, 2 * PAGE, SEEK_HOLE));
	T(lseek(fd, INT64_MAX, SEEK_END));
	T(lseek(fd, 5, SEEK_SET));
	T(lseek(fd, INT64_MAX, SEEK_CUR));
	T(lseek(fd, 0, 9));
	T(write(fd, "x", (size_t)INT64_MAX));
	m = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(m, 'a', 4 * PAGE);
	T(madvise(m + PAGE, PAGE, MADV_REMOVE));
	C(m[PAGE] == 0 && m[2 * PAGE - 1] == 0 && m[PAGE - 1] == 'a' && m[2 * PAGE] == 'a');
	T(madvise(m, 0, MADV_REMOVE));
	T(madvise(m + 1, PAGE, MADV_REMOVE));
	munmap(m, 4 * PAGE);
	m = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	T(madvise(m, PAGE, MADV_REMOVE));
	munmap(m, PAGE);
	m = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	T(madvise(m, PAGE, MADV_REMOVE));
	T(madvise(m, 2 * PAGE, MADV_REMOVE));
	munmap(m, PAGE);
	close(fd);
}

/* Setting the size that it has removes what is beyond it. */
static void same_size(void)
{
	int fd = memfd_create("m", MFD_ALLOW_SEALING);
	struct stat st;
	char *m;

	T(ftruncate(fd, 100));
	T(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 3 * PAGE));
	m = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(m, 'x', 200);
	T(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
	T(ftruncate(fd, 100));
	C(m[99] == 'x' && m[100] == 0);
	T(fstat(fd, &st));
	say("blocks %ld", (long)st.st_blocks);
	munmap(m, PAGE);
	close(fd);
}

static void grown(void)
{
	int fd = memfd_create("m", MFD_ALLOW_SEALING);
	char *m, *n;

	T(ftruncate(fd, 64 * PAGE));
	T(pwrite(fd, "end", 3, 40 * PAGE));
	m = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 8 * PAGE);
	T(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	for (long pages = 3; pages < 40; pages *= 2) {	/* again and again, and no seal is asked */
		n = mremap(m, (size_t)(pages == 3 ? 2 : pages / 2) * PAGE, (size_t)pages * PAGE, MREMAP_MAYMOVE);
		say("mremap to %ld pages: %s", pages, n == MAP_FAILED ? strerror(errno) : "ok");
		if (n == MAP_FAILED)
			return;
		m = n;
	}
	m[0] = 'x';
	close(fd);
}

static void appended(void)
{
	int fd = memfd_create("m", 0), other = memfd_create("n", 0), none = open("/dev/null", O_RDONLY);
	off_t from = -1;

	T(write(fd, page, 100));
	T(lseek(fd, 10, SEEK_SET));
	T(fcntl(fd, F_SETFL, O_APPEND));
	T(write(fd, page, 0));
	T(lseek(fd, 0, SEEK_CUR));		/* writing nothing moves nothing */
	T(sendfile(other, fd, &from, 8));
	T(sendfile(none, fd, &from, 8));
	from = 200;
	T(sendfile(other, fd, &from, 8));
	from = 0;
	T(lseek(other, INT64_MAX, SEEK_SET));
	T(sendfile(other, fd, &from, 8));
	close(fd);
	close(other);
	close(none);
}

static void others(void)
{
	int fd, two[2], again;
	char path[64], link[64];
	struct stat st;
	long n;

	fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	C((fcntl(fd, F_GETFL) & (O_TMPFILE | O_DIRECTORY | O_ACCMODE)) == (O_TMPFILE | O_RDWR));
	close(fd);

	T(pipe(two));
	T(syscall(SYS_fadvise64, two[0], 0, 0, 0));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", two[0]);
	again = open(path, O_WRONLY);		/* the other end, and nobody is waited for */
	T(write(again, "x", 1));
	T(read(two[0], path + 40, 1));
	n = again < 0 ? -1 : readlink((snprintf(path, sizeof(path), "/proc/self/fd/%d", again), path), link, sizeof(link));
	C(n > 6 && !strncmp(link, "pipe:[", 6));
	T(fallocate(two[0], FALLOC_FL_PUNCH_HOLE, 0, PAGE));
	T(fallocate(two[0], FALLOC_FL_ZERO_RANGE, 0, PAGE));
	T(fallocate(two[1], FALLOC_FL_ZERO_RANGE, 0, PAGE));
	T(lseek(two[0], 0, 9));
	close(two[0]);
	close(two[1]);
	close(again);

	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	T(open(path, O_RDWR));
	again = open(path, O_PATH);
	n = readlink((snprintf(path, sizeof(path), "/proc/self/fd/%d", again), path), link, sizeof(link));
	C(n > 8 && !strncmp(link, "socket:[", 8));
	close(fd);
	close(again);

	mkdir("/tmp/sticky", 0755);
	chmod("/tmp/sticky", 01777);
	close(open("/tmp/sticky/a", O_CREAT | O_WRONLY, 0666));
	CHILD("another user", {
		T(setuid(1000));
		T(unlink("/tmp/sticky/a"));
		T(rename("/tmp/sticky/a", "/tmp/sticky/b"));
		T(unlink("/tmp/sticky/none"));
		close(open("/tmp/sticky/own", O_CREAT | O_WRONLY, 0666));
		T(unlink("/tmp/sticky/own"));
	});
	unlink("/tmp/sticky/a");
	rmdir("/tmp/sticky");

	fd = memfd_create("m", 0);
	T(syscall(SYS_fadvise64, fd, -1, 0, 0));
	T(syscall(SYS_fadvise64, fd, 0, 0, 9));
	T(fstat(fd, &st));
	close(fd);
}

/* A file of huge pages on a machine that has none. */
static void huge(void)
{
	int fd = memfd_create("m", MFD_HUGETLB | MFD_ALLOW_SEALING), again;
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	OK(again = open(path, O_RDWR));
	T(fcntl(fd, F_GET_SEALS));
	T(ftruncate(fd, 2 << 20));
	T(lseek(fd, 5, SEEK_DATA));
	T(lseek(fd, 5, SEEK_HOLE));
	T(lseek(fd, -1, SEEK_DATA));
	T(lseek(fd, 4 << 20, SEEK_HOLE));
	T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
	T(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE));
	T(fcntl(fd, F_GET_SEALS));
	T(ftruncate(fd, 4 << 20));
	T(ftruncate(fd, 0));
	T(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
	T(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, PAGE) == MAP_FAILED ? -1 : 0);
	T(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, PAGE) == MAP_FAILED ? -1 : 0);
	T(write(fd, page, 1));
	close(fd);
	close(again);
}

int main(int argc, char **argv)
{
	(void)argv;
	signal(SIGPIPE, SIG_IGN);
	sealed();
	holes();
	same_size();
	grown();
	appended();
	others();
	if (argc == 1)
		huge();
	return 0;
}
