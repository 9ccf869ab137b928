/* Calls of the live update interface whose answer hangs on which part of an argument is looked at first, or on what a file
 * is that is preserved. One line each, see t.h.
 */
#include "t.h"
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <linux/liveupdate.h>
#include <linux/memfd.h>

#define PAGE	4096

/* A session, by an argument that ends where memory does, and says that it goes on. */
static void beyond_the_end(int device, unsigned char *end)
{
	struct liveupdate_ioctl_create_session *c = (void *)(end - sizeof(*c) - 16);

	c->size = sizeof(*c) + 5000;
	strcpy((char *)c->name, "long");
	T(ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, c));
	end[-1] = 1;			/* a byte that must be zero comes before what can not be read */
	T(ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, c));
	c->size = ~0U;
	T(ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, c));
}

int main(void)
{
	unsigned char *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int device = open("/dev/liveupdate", O_RDWR), file = memfd_create("m", MFD_ALLOW_SEALING);
	struct liveupdate_ioctl_create_session c = { .size = sizeof(c), .name = "session-of-17-ch" };
	struct liveupdate_session_get_name n = { .size = sizeof(n) };
	struct liveupdate_session_preserve_fd p = { .size = sizeof(p), .fd = file, .token = 1 };
	static char two[2 * PAGE];
	int session, used = 0;

	munmap(memory + PAGE, PAGE);
	beyond_the_end(device, memory + PAGE);
	T(ioctl(device, LIVEUPDATE_IOCTL_CREATE_SESSION, &c) < 0 ? -1 : 0);
	session = c.fd;
	memset(n.name, 0xaa, sizeof(n.name));
	T(ioctl(session, LIVEUPDATE_SESSION_GET_NAME, &n));
	for (unsigned i = 0; i < sizeof(n.name); i++)
		used += n.name[i] != 0xaa;
	say("name %s, bytes written %d", n.name, used);

	T(pread(device, two, 1, 0));
	T(pwrite(device, two, 1, 0));
	T(pread(session, two, 1, 0));
	T(lseek(device, 0, SEEK_SET));
	T(lseek(device, 0, 9));
	T(fchmod(session, 0600));
	T(fchown(session, 1, 1));

	T(ftruncate(file, PAGE + 100));
	T(ioctl(session, LIVEUPDATE_SESSION_PRESERVE_FD, &p));
	T(pwrite(file, two, 2 * PAGE, 0));		/* the first page would fit: nothing is written */
	T(pwrite(file, two, PAGE, 100));
	T(lseek(file, 0, SEEK_CUR));
	memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	T(madvise(memory, PAGE, MADV_REMOVE));
	return 0;
}
