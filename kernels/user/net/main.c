/*
 * main.c - a network receiver in user space that goes on receiving through live updates
 *
 *	net start [--irq] [--unmap] [--ring N] [--buffer BYTES] [--iova A]
 *			before an update: takes the e1000 from VFIO, receives, and has everything preserved. Goes on with the
 *			receiver that there is, if there is one.
 *	net check [N]	after it: retrieves everything, goes on receiving, reports. After N updates it stops receiving first,
 *			so that the report is final
 *	net wait N	until N more frames have come
 *	net stop	stops receiving and reports
 *	net receive [--irq] [--ring N] [--buffer BYTES] [--iova A] MS
 *			receives for so many milliseconds and reports; nothing is preserved, so that it runs on any Linux
 *
 * The receiver is a process that is left behind. It holds the device, an iommufd, and two memfds: the ring with its
 * buffers, the only memory that the device can reach, and the account (receiver.h). It preserves them in this order:
 * memory before what maps it, that before the device. In the next kernel another process does the same with what it
 * retrieves; the device never notices. Others ask things of the running receiver through its account.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../luo.h"
#include "e1000.h"
#include "frame.h"
#include "receiver.h"

#define SESSION		"net"
enum { TOKEN_RING = 1, TOKEN_ACCOUNT, TOKEN_IOMMUFD, TOKEN_DEVICE };

#define ACCOUNT_PATH	"/tmp/net.account"	/* a link to where the receiver has it open */
#define IOVA		0x1000000UL		/* of the ring, if nothing else is wished */
#define UNMAPPED	0x800000UL		/* a page that is taken away while the device uses it (--unmap) */
#define UNMAPPED_DESCRIPTOR	7
#define PAGE		4096UL
#define RING		4096
#define BUFFER		2048
#define BURST		64			/* frames between two looks at what is asked */
#define PAUSE_NS	50000			/* between two looks at an empty ring */
#define WAIT_MS		20			/* for an interrupt, before the ring is looked at all the same */
#define GRACE_MS	2			/* that a frame may be there before its interrupt */
#define ANSWER_MS	20000

struct receiver {
	struct e1000 nic;
	struct account *account;
	int ring_fd, account_fd, session, event;
};

static int fail(const char *what)
{
	fprintf(stderr, "net: %s: %s\n", what, strerror(errno));
	return -1;
}

static void sleep_ns(long ns)
{
	const struct timespec pause = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	nanosleep(&pause, NULL);
}

/* ---- memory ---- */

/* At an address that large pages can have. */
static void *map_large(int fd, uint64_t size)
{
	uint8_t *room = mmap(NULL, size + E1000_BUFFERS, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint8_t *at;

	if (room == MAP_FAILED)
		return NULL;
	at = (uint8_t *)(((uintptr_t)room + E1000_BUFFERS - 1) & -E1000_BUFFERS);
	if (mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return NULL;
	madvise(at, size, MADV_HUGEPAGE);	/* a kernel without them takes small ones */
	return at;
}

static int map_all(struct receiver *r, uint64_t ring_size)
{
	r->nic.memory = map_large(r->ring_fd, ring_size);
	if (r->nic.memory == NULL)
		return fail("map the ring");
	r->account = mmap(NULL, sizeof(*r->account), PROT_READ | PROT_WRITE, MAP_SHARED, r->account_fd, 0);
	if (r->account == MAP_FAILED)
		return fail("map the account");
	return 0;
}

static int make_memory(struct receiver *r)
{
	uint64_t size = e1000_memory_size(r->nic.count, r->nic.buffer);

	r->ring_fd = memfd_create("net-ring", MFD_CLOEXEC);
	r->account_fd = memfd_create("net-account", MFD_CLOEXEC);
	if (r->ring_fd < 0 || r->account_fd < 0 || ftruncate(r->ring_fd, (off_t)size) < 0 ||
	    ftruncate(r->account_fd, sizeof(struct account)) < 0)
		return fail("no memory");
	if (map_all(r, size) < 0)
		return -1;
	memset(r->nic.memory, 0, size);
	return 0;
}

/* ---- handing over ---- */

static int preserve(struct receiver *r)
{
	int device = luo_open();

	if (device < 0)
		return fail(LUO_DEVICE);
	r->session = luo_create(device, SESSION);
	close(device);
	if (r->session < 0)
		return fail("create a session");
	if (luo_preserve(r->session, r->ring_fd, TOKEN_RING) < 0)
		return fail("preserve the ring");
	if (luo_preserve(r->session, r->account_fd, TOKEN_ACCOUNT) < 0)
		return fail("preserve the account");
	if (luo_preserve(r->session, r->nic.vfio.iommufd, TOKEN_IOMMUFD) < 0)
		return fail("preserve the iommufd");
	if (luo_preserve(r->session, r->nic.vfio.device, TOKEN_DEVICE) < 0)
		return fail("preserve the device");
	return 0;
}

static int publish(struct receiver *r)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), r->account_fd);
	unlink(ACCOUNT_PATH);
	return symlink(path, ACCOUNT_PATH) < 0 ? fail(ACCOUNT_PATH) : 0;
}

static int set_up(struct receiver *r, bool interrupts)
{
	if (vfio_open(&r->nic.vfio, E1000_VENDOR, E1000_DEVICE) < 0 || make_memory(r) < 0)
		return -1;
	if (vfio_map(&r->nic.vfio, r->nic.memory, r->nic.iova, e1000_memory_size(r->nic.count, r->nic.buffer)) < 0 ||
	    vfio_map_bar(&r->nic.vfio) < 0)
		return -1;
	vfio_reset(&r->nic.vfio);	/* not every function can be */
	receiver_begin(r->account, r->nic.count, r->nic.buffer, interrupts);
	if (vfio_master(&r->nic.vfio, true) < 0)
		return -1;
	if (interrupts) {
		r->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (r->event < 0 || vfio_intx(&r->nic.vfio, r->event) < 0)
			return fail("interrupts");
	}
	e1000_start(&r->nic, interrupts);
	return publish(r);
}

static int take_over(struct receiver *r)
{
	int device = luo_open(), iommufd, function;
	struct stat st;

	if (device < 0)
		return fail(LUO_DEVICE);
	r->session = luo_retrieve(device, SESSION);
	close(device);
	if (r->session < 0)
		return fail("retrieve the session");
	r->ring_fd = luo_retrieve_fd(r->session, TOKEN_RING);
	r->account_fd = luo_retrieve_fd(r->session, TOKEN_ACCOUNT);
	if (r->ring_fd < 0 || r->account_fd < 0 || fstat(r->ring_fd, &st) < 0)
		return fail("retrieve the memory");
	iommufd = luo_retrieve_fd(r->session, TOKEN_IOMMUFD);
	if (iommufd < 0)
		return fail("retrieve the iommufd");
	function = luo_retrieve_fd(r->session, TOKEN_DEVICE);
	if (function < 0)
		return fail("retrieve the device");
	if (map_all(r, (uint64_t)st.st_size) < 0)
		return -1;
	if (fstat(r->account_fd, &st) < 0 || !receiver_valid(r->account, (uint64_t)st.st_size)) {
		errno = EINVAL;
		return fail("the account");
	}
	r->nic.count = r->account->count;
	r->nic.buffer = r->account->buffer;
	return vfio_adopt(&r->nic.vfio, iommufd, function) < 0 || vfio_map_bar(&r->nic.vfio) < 0 ? -1 : 0;
}

/* The first look at the ring after an update: how much has come meanwhile. It is taken as always. */
static void first_look(struct receiver *r)
{
	struct account *a = r->account;
	uint64_t now = ticks(), backlog = 0;
	uint32_t size;

	receiver_resume(a, &r->nic);
	if (now - a->last_poll > a->poll_to - a->poll_from) {
		a->poll_from = a->last_poll;
		a->poll_to = now;
	}
	while (backlog < r->nic.count && e1000_frame(&r->nic, a->taken + backlog, &size) != NULL)
		backlog++;
	if (backlog > a->backlog)
		a->backlog = backlog;
	e1000_give(&r->nic, a->taken);
}

static int go_on(struct receiver *r)
{
	struct account *a = r->account;

	if (a->interrupts) {	/* what came meanwhile is signalled once; only that has the ring emptied */
		r->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (r->event < 0 || vfio_intx(&r->nic.vfio, r->event) < 0)
			return fail("interrupts");
	}
	first_look(r);
	if (luo_finish(r->session) < 0)
		return fail("finish the session");
	close(r->session);
	r->session = -1;
	return publish(r);
}

/* ---- receiving ---- */

static void drain(struct receiver *r)
{
	while (receiver_poll(r->account, &r->nic, BURST) == BURST)
		;
}

static void wait_for_interrupt(struct receiver *r)
{
	struct pollfd p = { .fd = r->event, .events = POLLIN };
	struct account *a = r->account;
	const uint8_t *frame;
	uint64_t count = 0;
	uint32_t cause, size;

	if (poll(&p, 1, WAIT_MS) == 0) {
		frame = e1000_frame(&r->nic, a->taken, &size);
		if (frame == NULL || poll(&p, 1, GRACE_MS) != 0)
			return;
		if (a->lost_interrupts++ == 0)
			a->lost_tick = ((const struct frame *)frame)->tick;
		drain(r);
		return;
	}
	if (read(r->event, &count, sizeof(count)) == sizeof(count))
		a->signals += count;
	cause = e1000_cause(&r->nic);
	if (receiver_poll(a, &r->nic, BURST) == 0 && cause == 0)
		a->spurious++;
	else
		drain(r);
	vfio_unmask_intx(&r->nic.vfio);
}

static void end_receiving(struct receiver *r)
{
	e1000_receive(&r->nic, false);
	drain(r);
	r->account->missed += e1000_missed(&r->nic);
}

static void answer(struct receiver *r)
{
	struct account *a = r->account;
	int status;

	switch (__atomic_load_n(&a->request, __ATOMIC_ACQUIRE)) {
	case REQUEST_PRESERVE:
		status = preserve(r);
		break;
	case REQUEST_STOP:
		end_receiving(r);
		status = 0;
		break;
	default:
		return;
	}
	a->request = REQUEST_NONE;
	__atomic_store_n(&a->answer, status < 0 ? 2 : 1, __ATOMIC_RELEASE);
}

static void look(struct receiver *r)
{
	if (r->account->interrupts)
		wait_for_interrupt(r);
	else if (receiver_poll(r->account, &r->nic, BURST) == 0)
		sleep_ns(PAUSE_NS);
}

static _Noreturn void receive_for_ever(struct receiver *r)
{
	for (;;) {
		answer(r);
		look(r);
	}
}

/* A process that is left behind does `begin`, tells how that went, and receives. */
static int leave_behind(struct receiver *r, int (*begin)(struct receiver *r))
{
	unsigned char status = 1;
	int report[2];

	if (pipe2(report, O_CLOEXEC) < 0)
		return fail("pipe");
	switch (fork()) {
	case -1:
		return fail("fork");
	case 0:
		setsid();
		signal(SIGPIPE, SIG_IGN);
		close(report[0]);
		status = (unsigned char)(begin(r) < 0);
		if (write(report[1], &status, 1) != 1 || status != 0)
			_exit(1);
		close(report[1]);
		receive_for_ever(r);
	}
	close(report[1]);
	if (read(report[0], &status, 1) != 1)
		fprintf(stderr, "net: the receiver is gone\n");
	close(report[0]);
	return status != 0 ? -1 : 0;
}

/* ---- those who ask ---- */

static struct account *running_account(void)
{
	int fd = open(ACCOUNT_PATH, O_RDWR | O_CLOEXEC);
	struct account *a;

	if (fd < 0)
		return NULL;
	a = mmap(NULL, sizeof(*a), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return a == MAP_FAILED ? NULL : a;
}

static int ask(struct account *a, uint32_t request)
{
	a->answer = 0;
	__atomic_store_n(&a->request, request, __ATOMIC_RELEASE);
	for (unsigned int i = 0; i < ANSWER_MS && !__atomic_load_n(&a->answer, __ATOMIC_ACQUIRE); i++)
		sleep_ns(1000000);
	if (a->answer == 1)
		return 0;
	fprintf(stderr, "net: the receiver %s\n", a->answer == 0 ? "does not answer" : "could not do it");
	return -1;
}

static uint64_t lost(const struct account *a, uint64_t received)
{
	return a->first == UINT64_MAX ? 0 : a->highest + 1 - a->first - received;
}

static int report(const struct account *a, bool final)
{
	uint64_t received = receiver_received(a);

	printf("@net {\"final\": %s, \"updates\": %u, \"irq\": %s, \"ring\": %u, \"buffer\": %u", final ? "true" : "false",
	       a->updates, a->interrupts ? "true" : "false", a->count, a->buffer);
	printf(", \"first\": %" PRIu64 ", \"highest\": %" PRIu64 ", \"received\": %" PRIu64 ", \"lost\": %" PRIu64,
	       a->first == UINT64_MAX ? 0 : a->first, a->highest, received, lost(a, received));
	printf(", \"duplicated\": %" PRIu64 ", \"corrupted\": %" PRIu64 ", \"reordered\": %" PRIu64 ", \"beyond\": %" PRIu64
	       ", \"missed\": %" PRIu64,
	       a->duplicated, a->corrupted, a->reordered, a->beyond, a->missed);
	printf(", \"gap\": [%" PRIu64 ", %" PRIu64 "], \"poll\": [%" PRIu64 ", %" PRIu64 "], \"backlog\": %" PRIu64, a->gap_from,
	       a->gap_to, a->poll_from, a->poll_to, a->backlog);
	printf(", \"signals\": %" PRIu64 ", \"spurious\": %" PRIu64 ", \"lost_interrupts\": %" PRIu64
	       ", \"lost_tick\": %" PRIu64 "}\n", a->signals, a->spurious, a->lost_interrupts, a->lost_tick);
	return received == 0 || lost(a, received) != 0 || a->duplicated != 0 || a->corrupted != 0 || a->reordered != 0 ||
	       a->beyond != 0 || a->missed != 0 || a->lost_interrupts != 0;
}

/* ---- commands ---- */

static bool with_interrupts, unmaps;

/* Takes a buffer away from a device that still uses it, as a careless driver does: its frame goes nowhere then. The page
 * itself goes back to the kernel. The buffer is one that the device has written to, so that the IOMMU knows it. */
static int unmap_one(struct receiver *r)
{
	uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (page == MAP_FAILED || vfio_map(&r->nic.vfio, page, UNMAPPED, PAGE) < 0)
		return fail("a page to be unmapped");
	e1000_set_address(&r->nic, UNMAPPED_DESCRIPTOR, UNMAPPED);
	while (r->account->taken <= UNMAPPED_DESCRIPTOR)
		receiver_poll(r->account, &r->nic, 1);
	if (vfio_unmap(&r->nic.vfio, UNMAPPED, PAGE) < 0)
		return -1;
	munmap(page, PAGE);
	return 0;
}

static int begin_new(struct receiver *r)
{
	if (set_up(r, with_interrupts) < 0 || (unmaps && unmap_one(r) < 0))
		return -1;
	return preserve(r);
}

static int begin_again(struct receiver *r)
{
	return take_over(r) < 0 || go_on(r) < 0 ? -1 : 0;
}

static int start(struct receiver *r)
{
	struct account *a = running_account();

	if (a != NULL)
		return ask(a, REQUEST_PRESERVE) < 0;
	if (leave_behind(r, begin_new) < 0)
		return 1;
	printf("net: receives into %u buffers of %u bytes%s\n", r->nic.count, r->nic.buffer,
	       with_interrupts ? ", by interrupts" : "");
	return 0;
}

static int stop(void)
{
	struct account *a = running_account();

	if (a == NULL)
		return fail("no receiver") < 0;
	if (ask(a, REQUEST_STOP) < 0)
		return 1;
	return report(a, true);
}

static int wait_for(uint64_t frames)
{
	struct account *a = running_account();
	uint64_t before, now = 0;

	if (a == NULL)
		return fail("no receiver") < 0;
	before = __atomic_load_n(&a->taken, __ATOMIC_ACQUIRE);
	for (unsigned int i = 0; i < ANSWER_MS; i++) {
		now = __atomic_load_n(&a->taken, __ATOMIC_ACQUIRE) - before;
		if (now >= frames)
			return 0;
		sleep_ns(1000000);
	}
	fprintf(stderr, "net: %" PRIu64 " frames came in %d s, %" PRIu64 " were waited for\n", now, ANSWER_MS / 1000, frames);
	return 1;
}

static int check(uint64_t last)
{
	struct receiver r = { .event = -1, .session = -1 };
	struct account *a;

	if (leave_behind(&r, begin_again) < 0)
		return 1;
	a = running_account();
	if (a == NULL)
		return fail("no receiver") < 0;
	if (last != 0 && a->updates >= last)
		return stop();
	return report(a, false);
}

static bool number(const char *text, uint64_t max, uint64_t *value)
{
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 0);
	return errno == 0 && end != text && *end == '\0' && *text != '-' && *value <= max;
}

static int usage(void)
{
	fprintf(stderr, "usage: net start [--irq] [--unmap] [--ring N] [--buffer BYTES] [--iova A] | check [N] | wait N | stop\n"
			"       net receive [--irq] [--ring N] [--buffer BYTES] [--iova A] MS\n");
	return 2;
}

static int receive(struct receiver *r, uint64_t ms)
{
	struct timespec now, end;

	if (set_up(r, with_interrupts) < 0)
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += (time_t)(ms / 1000);
	end.tv_nsec += (long)(ms % 1000) * 1000000;
	do {
		look(r);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while ((now.tv_sec - end.tv_sec) * 1000000000 + now.tv_nsec - end.tv_nsec < 0);
	end_receiving(r);
	return report(r->account, true);
}

/* `net start` and `net receive`, which ends with a time. */
static int start_with(int argc, char **argv, bool timed)
{
	struct receiver r = { .event = -1, .session = -1 };
	uint64_t count = RING, buffer = BUFFER, iova = IOVA, ms = 0;

	if (timed && (argc < 1 || !number(argv[--argc], 1U << 30, &ms)))
		return usage();
	for (int i = 0; i < argc; i++) {
		if (strcmp(argv[i], "--irq") == 0)
			with_interrupts = true;
		else if (strcmp(argv[i], "--unmap") == 0)
			unmaps = true;
		else if (i + 1 < argc && strcmp(argv[i], "--ring") == 0 && number(argv[i + 1], E1000_RING_MAX, &count))
			i++;
		else if (i + 1 < argc && strcmp(argv[i], "--buffer") == 0 && number(argv[i + 1], 16384, &buffer))
			i++;
		else if (i + 1 < argc && strcmp(argv[i], "--iova") == 0 && number(argv[i + 1], 1UL << 38, &iova))
			i++;
		else
			return usage();
	}
	if (iova % E1000_BUFFERS != 0 || count < 8 || count % 8 != 0 || buffer < 2048 || (buffer & (buffer - 1)) != 0)
		return usage();
	r.nic.iova = iova;
	r.nic.count = (uint32_t)count;
	r.nic.buffer = (uint32_t)buffer;
	return timed ? receive(&r, ms) : start(&r);
}

int main(int argc, char **argv)
{
	uint64_t last = 0, frames = 0;

	if (argc >= 2 && strcmp(argv[1], "start") == 0)
		return start_with(argc - 2, argv + 2, false);
	if (argc >= 2 && strcmp(argv[1], "receive") == 0)
		return start_with(argc - 2, argv + 2, true);
	if (argc >= 2 && argc <= 3 && strcmp(argv[1], "check") == 0 && (argc == 2 || number(argv[2], UINT32_MAX, &last)))
		return check(last);
	if (argc == 3 && strcmp(argv[1], "wait") == 0 && number(argv[2], RECEIVER_NUMBERS, &frames))
		return wait_for(frames);
	if (argc == 2 && strcmp(argv[1], "stop") == 0)
		return stop();
	return usage();
}
