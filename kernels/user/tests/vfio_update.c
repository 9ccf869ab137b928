/* The educational device goes over to the next kernel, in the hands of one program after the other.
 *
 *	vfio_update before [WORD...]	prepares, preserves in session "s", and leaves a process behind that holds it
 *	vfio_update after [WORD...]	retrieves, looks, works, finishes
 *
 * Words: intx, msi (interrupts on), ack (the cause of an interrupt is acknowledged), raise (one is pending, unread),
 * and what else is tried; see main(). Tokens are 1 memory, 2 iommufd, 3 device. */
#include "t.h"
#include "hold.h"
#include <linux/iommufd.h>
#include <linux/liveupdate.h>
#include <linux/memfd.h>
#include <linux/vfio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>

#define PATH	"/dev/vfio/devices/vfio0"
#define IOVA	0x400000UL
#define SIZE	(2UL << 20)
#define CONFIG	((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40)
#define LIVENESS 0x13572468u

static char **words;
static int luo, session, memory_fd, iommu, device, event;
static uint32_t ioas, hwpt;
static uint8_t *memory;
static volatile uint8_t *bar;

static int has(const char *word)
{
	for (char **w = words; *w; w++)
		if (!strcmp(*w, word))
			return 1;
	return 0;
}

static uint32_t reg(unsigned at) { return *(volatile uint32_t *)(bar + at); }
static void set(unsigned at, uint32_t value) { *(volatile uint32_t *)(bar + at) = value; }

static int bind_to(int fd)
{
	struct vfio_device_bind_iommufd b = { .argsz = sizeof(b), .iommufd = fd };

	return ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &b);
}

static int attach(uint32_t pt)
{
	struct vfio_device_attach_iommufd_pt a = { .argsz = 12, .pt_id = pt };
	int r = ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &a);

	hwpt = a.pt_id;
	return r;
}

static int detach(void)
{
	struct vfio_device_detach_iommufd_pt d = { .argsz = 8 };

	return ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &d);
}

static int map(uint64_t iova, void *at, uint64_t size)
{
	struct iommu_ioas_map m = {
		.size = sizeof(m), .ioas_id = ioas, .user_va = (uintptr_t)at, .length = size, .iova = iova,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
	};

	return ioctl(iommu, IOMMU_IOAS_MAP, &m);
}

static int irqs(uint32_t index, uint32_t flags, uint32_t count, int fd)
{
	union {
		struct vfio_irq_set set;
		uint8_t room[sizeof(struct vfio_irq_set) + 4];
	} u = { .set = { .argsz = sizeof(u.room), .flags = flags, .index = index, .count = count } };

	memcpy(u.room + sizeof(struct vfio_irq_set), &fd, 4);
	return ioctl(device, VFIO_DEVICE_SET_IRQS, &u.set);
}

static uint32_t irq_index(void)
{
	return has("msi") ? VFIO_PCI_MSI_IRQ_INDEX : VFIO_PCI_INTX_IRQ_INDEX;
}

static int listen_to(int fd)
{
	return irqs(irq_index(), VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 1, fd);
}

static int unmask(void)
{
	return irqs(VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 1, 0);
}

static unsigned int signals(void)
{
	struct pollfd p = { .fd = event, .events = POLLIN };
	uint64_t n = 0;

	return poll(&p, 1, 50) == 1 && read(event, &n, 8) == 8 ? (unsigned int)n : 0;
}

static void map_bar(void)
{
	bar = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
	C(bar != MAP_FAILED);
}

static void master(int on)
{
	uint16_t command = on ? 6 : 2;

	if (pwrite(device, &command, 2, CONFIG + 4) != 2)
		say("COMMAND: %s", strerror(errno));
}

static uint32_t command(void)
{
	uint16_t c = 0;

	return pread(device, &c, 2, CONFIG + 4) == 2 ? c : ~0U;
}

static void transfer(uint64_t from, uint64_t to, uint32_t count, uint32_t how)
{
	set(0x80, (uint32_t)from);
	set(0x88, (uint32_t)to);
	set(0x90, count);
	set(0x98, how | 1);
	while (reg(0x98) & 1)
		;
}

static int preserve(int fd, uint64_t token)
{
	struct liveupdate_session_preserve_fd p = { .size = sizeof(p), .fd = fd, .token = token };

	return ioctl(session, LIVEUPDATE_SESSION_PRESERVE_FD, &p);
}

static int retrieve(uint64_t token)
{
	struct liveupdate_session_retrieve_fd r = { .size = sizeof(r), .token = token };

	return ioctl(session, LIVEUPDATE_SESSION_RETRIEVE_FD, &r) < 0 ? -1 : r.fd;
}

static int finish(void)
{
	struct liveupdate_session_finish f = { .size = sizeof(f) };

	return ioctl(session, LIVEUPDATE_SESSION_FINISH, &f);
}

static void create_session(void)
{
	struct liveupdate_ioctl_create_session s = { .size = sizeof(s), .name = "s" };

	if (!luo)
		luo = open("/dev/liveupdate", O_RDWR);
	session = ioctl(luo, LIVEUPDATE_IOCTL_CREATE_SESSION, &s) < 0 ? -1 : s.fd;
	C(session >= 0);
}

/* One more device, in the same address space. The calls above are for it while this runs. */
static void swap(void)
{
	static int other_device = -1;
	static volatile uint8_t *other_bar;
	volatile uint8_t *b = bar;
	int d = device;

	device = other_device;
	bar = other_bar;
	other_device = d;
	other_bar = b;
}

static void second_before(void)
{
	swap();
	device = open("/dev/vfio/devices/vfio1", O_RDWR);
	T(bind_to(iommu));
	T(attach(ioas));
	map_bar();
	master(1);
	set(4, 0x2468);
	transfer(IOVA + 0x1000, 0x40000, 1024, 0);
	swap();
}

static void second_after(void)
{
	swap();
	device = retrieve(4);
	C(device >= 0);
	C(command() == 6);
	map_bar();
	C(reg(4) == ~0x2468U);
	memcpy(memory + 0x5000, memory + 0x1000, 1024);
	memset(memory + 0x1000, 0, 1024);
	transfer(0x40000, IOVA + 0x1000, 1024, 2);
	C(!memcmp(memory + 0x1000, memory + 0x5000, 1024));
	swap();
}

/* A second iommufd whose memory is not handed over any more: the whole update fails after the device was frozen. */
static void fail(void)
{
	struct iommu_ioas_alloc a = { .size = sizeof(a) };
	struct liveupdate_ioctl_create_session t = { .size = sizeof(t), .name = "t" }, u = { .size = sizeof(u), .name = "u" };
	struct iommu_ioas_map m = {
		.size = sizeof(m), .length = 4096, .iova = IOVA,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
	};
	int fd = (int)syscall(SYS_memfd_create, "other", 0), other = open("/dev/iommu", O_RDWR);
	int kernel = open("/luemu/kernel1", O_RDONLY), s = session;

	ftruncate(fd, 4096);
	m.user_va = (uintptr_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	T(ioctl(other, IOMMU_IOAS_ALLOC, &a));
	m.ioas_id = a.out_ioas_id;
	T(ioctl(other, IOMMU_IOAS_MAP, &m));
	T(ioctl(luo, LIVEUPDATE_IOCTL_CREATE_SESSION, &u));
	T(ioctl(luo, LIVEUPDATE_IOCTL_CREATE_SESSION, &t));
	session = u.fd;
	T(preserve(fd, 1));
	session = t.fd;
	T(preserve(other, 1));
	close(u.fd);
	T(syscall(SYS_kexec_file_load, kernel, -1, 1UL, "", 4UL));	/* no initramfs: it is not started */
	T(reboot(RB_KEXEC));
	T(reboot(RB_KEXEC));
	close(t.fd);
	session = s;
	C(reg(4) == ~LIVENESS);
	transfer(0x40000, IOVA + 8192, 2048, 2);
	C(!memcmp(memory, memory + 8192, 2048));
	T(signals());
	set(0x60, 1);
	T(signals());
	set(0x64, 1);
	if (has("intx"))
		T(unmask());
	T(signals());
}

static void before(void)
{
	struct iommu_ioas_alloc a = { .size = sizeof(a) };

	memory_fd = (int)syscall(SYS_memfd_create, "ring", MFD_CLOEXEC);
	ftruncate(memory_fd, SIZE);
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
	if (has("huge"))
		madvise(memory, SIZE, MADV_HUGEPAGE);
	for (unsigned int i = 0; i < 4096; i++)
		memory[i] = memory[i + 4096] = (uint8_t)(i * 5 + (i >> 8));
	device = open(PATH, O_RDWR);
	iommu = open("/dev/iommu", O_RDWR);
	if (has("chain") && bind_to(iommu)) {
		say("it is taken");
		return;
	}
	create_session();
	if (has("unbound")) {
		T(preserve(device, 3));
		T(bind_to(iommu));
		T(preserve(device, 3));
	} else if (!has("chain")) {
		T(bind_to(iommu));
	}
	T(ioctl(iommu, IOMMU_IOAS_ALLOC, &a));
	ioas = a.out_ioas_id;
	T(map(IOVA, memory, SIZE));
	T(attach(ioas));
	map_bar();
	master(1);
	set(4, LIVENESS);
	transfer(IOVA, 0x40000, 2048, 0);
	event = eventfd(0, EFD_NONBLOCK);
	if (has("intx") || has("msi"))
		T(listen_to(event));
	if (has("raise"))
		set(0x60, 1);
	if (has("ack")) {
		T(signals());
		set(0x64, 1);
		if (has("intx") && !has("masked"))
			T(unmask());
	}
	if (has("private")) {
		uint8_t *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		*p = 1;
		T(map(0x800000, p, 4096));
	}
	if (has("second"))
		second_before();
	if (!has("no-memory"))
		T(preserve(memory_fd, 1));
	if (has("too-early"))
		T(preserve(device, 3));
	if (!has("no-iommufd"))
		T(preserve(iommu, 2));
	T(preserve(device, 3));
	if (has("second") && !has("alone")) {
		swap();
		T(preserve(device, 4));
		swap();
	}
	if (has("again")) {
		T(preserve(device, 4));
		T(preserve(device, 3));
	}
	if (has("change")) {
		T(ioctl(device, VFIO_DEVICE_RESET));
		T(detach());
		T(attach(ioas));
		C(hwpt != ioas);
		T(map(0x800000, memory, 4096));
		C(reg(4) == ~LIVENESS);
	}
	if (has("undo")) {
		close(session);
		sleep_ms(1);
		T(detach());
		T(attach(ioas));
		T(ioctl(device, VFIO_DEVICE_RESET));
		C(reg(4) == 0);
		create_session();
		set(4, LIVENESS);
		master(1);
		T(preserve(memory_fd, 1));
		T(preserve(iommu, 2));
		T(preserve(device, 3));
	}
	if (has("close"))
		close(session);
	if (has("fail"))
		fail();
	hold();
	_exit(0);
}

/* What must work whoever did what before. */
static void work(void)
{
	C(!memcmp(memory, memory + 8192, 2048));
	memset(memory + 8192, 0, 2048);
	transfer(IOVA, 0x40000, 2048, 0);
	transfer(0x40000, IOVA + 8192, 2048, 2);
	C(!memcmp(memory, memory + 8192, 2048));
}

static void interrupts(void)
{
	say("bits %#x", reg(0x24));
	T(signals());				/* nobody listens */
	T(listen_to(event));
	T(signals());
	T(signals());
	say("bits %#x", reg(0x24));
	set(0x64, reg(0x24));
	if (has("intx"))
		T(unmask());
	T(signals());
	set(0x60, 0x10);
	T(signals());
	set(0x64, 0x10);
	if (has("intx"))
		T(unmask());
	T(signals());
}

static void after(void)
{
	struct liveupdate_ioctl_retrieve_session s = { .size = sizeof(s), .name = "s" };
	uint16_t c = 0;

	if (has("steal")) {
		device = open(PATH, O_RDWR);
		iommu = open("/dev/iommu", O_RDWR);
		T(bind_to(iommu));
		close(device);
		close(iommu);
	}
	luo = open("/dev/liveupdate", O_RDWR);
	session = ioctl(luo, LIVEUPDATE_IOCTL_RETRIEVE_SESSION, &s) < 0 ? -1 : s.fd;
	if (session < 0) {
		say("no session: %s", strerror(errno));
		return;
	}
	if (has("nothing")) {
		T(finish());
		device = open(PATH, O_RDWR);
		iommu = open("/dev/iommu", O_RDWR);
		T(bind_to(iommu));
		map_bar();
		C(reg(4) == 0);
		C(!(command() & 4));
		return;
	}
	memory_fd = retrieve(1);
	if (has("late")) {
		device = retrieve(3);
		T(pread(device, &c, 2, CONFIG + 4));
		T(finish());
		iommu = retrieve(2);
	} else {
		iommu = has("no-iommufd") ? -1 : retrieve(2);
		device = has("no-device") ? -1 : retrieve(3);
	}
	C(memory_fd >= 0);
	C(iommu >= 0);
	C(device >= 0);
	if (device < 0) {
		T(retrieve(3));
		T(finish());
		device = open(PATH, O_RDWR);
		T(bind_to(iommu >= 0 ? iommu : open("/dev/iommu", O_RDWR)));
		return;
	}
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
	C(command() == 6);
	map_bar();
	C(reg(4) == ~LIVENESS);
	transfer(0x40000, IOVA + 8192, 2048, 2);	/* from the buffer that the program before filled */
	work();
	if (has("second"))
		second_after();
	event = eventfd(0, EFD_NONBLOCK);
	if (has("rebind")) {
		T(bind_to(iommu));
		T(attach(2));
		T(attach(hwpt));
		T(attach(99));
		T(bind_to(luo));
		T(detach());
		T(ioctl(device, VFIO_DEVICE_RESET));
		T(preserve(device, 9));
		C(reg(4) == ~LIVENESS);
	}
	if (has("intx") || has("msi"))
		interrupts();
	if (has("off"))
		T(irqs(irq_index(), VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0));
	T(finish());
	C(reg(4) == ~LIVENESS);
	work();
	if (has("more")) {
		close(session);
		create_session();
		T(preserve(memory_fd, 1));
		T(preserve(iommu, 2));
		T(preserve(device, 3));
		hold();
		_exit(0);
	}
	ioas = 2;
	T(map(0x800000, memory, 4096));
	T(detach());
	T(attach(2));
	T(ioctl(device, VFIO_DEVICE_RESET));
	C(reg(4) == 0);
	C(command() & 2);
}

int main(int argc, char **argv)
{
	words = argv + (argc > 1 ? 2 : 1);
	if (argc > 1 && !strcmp(argv[1], "before"))
		before();
	else
		after();
	return 0;
}
