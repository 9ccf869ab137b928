/* The educational device in the hands of a program: VFIO and iommufd, and everything that can be asked wrongly of them.
 * Linux says the same: see tests/guest/test_vfio.py. */
#include "t.h"
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#define IOVA	0x400000UL
#define CONFIG	((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40)

static int device, iommu;
static uint32_t ioas, hwpt;
static volatile uint8_t *bar;

static uint32_t reg(unsigned at) { return *(volatile uint32_t *)(bar + at); }
static void set(unsigned at, uint32_t value) { *(volatile uint32_t *)(bar + at) = value; }

static uint32_t config(unsigned at, unsigned size)
{
	uint32_t v = 0;

	return pread(device, &v, size, CONFIG + at) == (ssize_t)size ? v : 0xdeadbeef;
}

static void set_config(unsigned at, unsigned size, uint32_t v)
{
	if (pwrite(device, &v, size, CONFIG + at) != (ssize_t)size)
		say("config %#x: %s", at, strerror(errno));
}

static int bind_to(int fd, uint32_t argsz, uint32_t flags)
{
	struct vfio_device_bind_iommufd b = { .argsz = argsz, .flags = flags, .iommufd = fd };

	return ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &b);
}

static int attach(uint32_t pt, uint32_t argsz, uint32_t flags)
{
	struct vfio_device_attach_iommufd_pt a = { .argsz = argsz, .flags = flags, .pt_id = pt, .pasid = 5 };
	int r = ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &a);

	hwpt = a.pt_id;
	return r;
}

static int detach(uint32_t argsz, uint32_t flags)
{
	struct vfio_device_detach_iommufd_pt d = { .argsz = argsz, .flags = flags };

	return ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &d);
}

static int irqs(uint32_t index, uint32_t flags, uint32_t start, uint32_t count, int fd)
{
	union {
		struct vfio_irq_set set;
		uint8_t room[sizeof(struct vfio_irq_set) + 4];
	} u = { .set = { .argsz = sizeof(u.room), .flags = flags, .index = index, .start = start, .count = count } };

	memcpy(u.room + sizeof(struct vfio_irq_set), &fd, 4);
	return ioctl(device, VFIO_DEVICE_SET_IRQS, &u.set);
}

#define NONE	VFIO_IRQ_SET_DATA_NONE
#define BOOL	VFIO_IRQ_SET_DATA_BOOL
#define EVENT	VFIO_IRQ_SET_DATA_EVENTFD
#define TRIGGER	VFIO_IRQ_SET_ACTION_TRIGGER
#define MASK	VFIO_IRQ_SET_ACTION_MASK
#define UNMASK	VFIO_IRQ_SET_ACTION_UNMASK
#define INTX	VFIO_PCI_INTX_IRQ_INDEX
#define MSI	VFIO_PCI_MSI_IRQ_INDEX

/* Signals, 0 if there is none within 50 ms. */
static unsigned int signals(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t n = 0;

	return poll(&p, 1, 50) == 1 && read(fd, &n, 8) == 8 ? (unsigned int)n : 0;
}

static void before_bind(void)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };
	int null = open("/dev/null", O_RDWR);
	char byte;

	T(ioctl(device, VFIO_DEVICE_GET_INFO, &info));
	T(ioctl(device, VFIO_DEVICE_RESET));
	T(attach(1, 12, 0));
	T(pread(device, &byte, 1, CONFIG));
	C(mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, 0) == MAP_FAILED && errno == EINVAL);
	T(bind_to(iommu, 12, 0));
	T(bind_to(iommu, 16, 8));
	T(bind_to(-1, 16, 0));
	T(bind_to(99, 16, 0));
	T(bind_to(null, 16, 0));
	T(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, BAD));
	close(null);
}

static void second_file(const char *path)
{
	int first = device;

	device = open(path, O_RDWR);
	C(device >= 0);
	T(bind_to(iommu, 16, 0));
	close(device);
	device = first;
}

static void attaching(void)
{
	struct iommu_ioas_alloc a = { .size = sizeof(a) };

	T(ioctl(iommu, IOMMU_IOAS_ALLOC, &a));
	ioas = a.out_ioas_id;
	T(attach(999, 12, 0));
	T(attach(ioas, 8, 0));
	T(attach(ioas, 12, 2));
	T(attach(ioas, 12, 1));
	T(attach(ioas, 16, 1));
	T(detach(8, 1));
	T(detach(12, 1));
	T(detach(8, 0));
	T(attach(ioas, 12, 0));
	C(hwpt != ioas && hwpt != 0);
	T(attach(hwpt, 12, 0));
	T(detach(4, 0));
	T(detach(8, 4));
	T(detach(8, 0));
	T(attach(ioas, 12, 0));
}

static void information(void)
{
	struct vfio_device_info d = { .argsz = sizeof(d) };
	struct vfio_region_info r = { .argsz = sizeof(r) };
	struct vfio_irq_info q = { .argsz = sizeof(q) };

	T(ioctl(device, VFIO_DEVICE_GET_INFO, &d));
	say("device: flags %#x, %u regions, %u interrupts", d.flags, d.num_regions, d.num_irqs);
	d.argsz = 12;
	T(ioctl(device, VFIO_DEVICE_GET_INFO, &d));
	for (r.index = 0; r.index < 10; r.index++) {
		int err = ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &r) ? errno : 0;

		say("region %u: %d, flags %#x, %llu bytes, at %#llx", r.index, err, r.flags, r.size, r.offset);
	}
	r.argsz = 8;
	T(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &r));
	for (q.index = 0; q.index < 6; q.index++) {
		int err = ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &q) ? errno : 0;

		say("interrupt %u: %d, flags %#x, count %u", q.index, err, q.flags, q.count);
	}
	T(ioctl(device, 0x3b00 + 100 + 77, &q));
	T(ioctl(device, VFIO_DEVICE_GET_INFO, BAD));
}

static void configuration(void)
{
	char byte = 0;

	say("identity %#x", config(0, 4));
	say("class %#x", config(8, 4) >> 8);
	C(config(4, 2) & 2);
	C(!(config(4, 2) & 4));
	say("BAR 0 %#x", config(0x10, 4) & 0xf);
	set_config(0x10, 4, 0xffffffff);
	say("BAR 0 sized %#x", config(0x10, 4));
	set_config(0x10, 4, 0xe0000000);
	say("BAR 0 set %#x", config(0x10, 4));
	set_config(0x14, 4, 0xffffffff);
	say("BAR 1 sized %#x", config(0x14, 4));
	set_config(0, 4, 0x12345678);
	say("identity %#x", config(0, 4));
	set_config(0x3c, 1, 0x5a);
	say("line %#x, pin %u", config(0x3c, 1), config(0x3d, 1));
	set_config(4, 2, 0x402);
	C(config(4, 2) == 0x402);
	set_config(4, 2, 0x002);
	C(config(4, 2) == 0x002);
	for (unsigned int at = config(0x34, 1), n = 0; at && n < 16; at = config(at + 1, 1), n++)
		say("capability %#x", config(at, 1));
	T(lseek(device, 0, SEEK_SET));
	T(pread(device, &byte, 1, CONFIG + 255));
	T(pread(device, &byte, 1, CONFIG + 256));
	T(pread(device, (char[8]){ 0 }, 8, CONFIG + 252));
	T(pread(device, BAD, 4, CONFIG));
	T(pread(device, &byte, 1, (off_t)6 << 40));
	T(pread(device, &byte, 1, (off_t)9 << 40));
	T(pread(device, &byte, 0, CONFIG));
}

static void registers(void)
{
	uint32_t v = 0x11223344, w = 0;

	T(pread(device, &v, 4, 0));
	say("edu %#x", v);
	v = 0x0badcafe;
	T(pwrite(device, &v, 4, 4));
	T(pread(device, &w, 4, 4));
	C(w == ~v);
	T(pread(device, &w, 4, (1 << 20) - 4));
	T(pread(device, (char[8]){ 0 }, 8, (1 << 20) - 4));
	T(pread(device, &w, 4, 1 << 20));
	T(pread(device, &w, 4, (off_t)1 << 40));
	C(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, device, 0) == MAP_FAILED && errno == EINVAL);
	C(mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, 1 << 20) == MAP_FAILED && errno == EINVAL);
	C(mmap(NULL, 2 << 20, PROT_READ, MAP_SHARED, device, 0) == MAP_FAILED && errno == EINVAL);
	C(mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, CONFIG) == MAP_FAILED && errno == EINVAL);
	bar = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
	C(bar != MAP_FAILED);
	say("edu %#x", reg(0));
	set(4, 0x5555aaaa);
	C(reg(4) == 0xaaaa5555);
	CHILD("a child has the registers too", _exit(reg(4) == 0xaaaa5555 ? 7 : 8));
	CHILD("no memory decoding", { set_config(4, 2, 0); reg(0); });
	set_config(4, 2, 2);
	C(reg(4) == 0xaaaa5555);
	T(mprotect((void *)bar, 4096, PROT_READ));
	CHILD("write to read-only registers", set(4, 0));
	T(mprotect((void *)bar, 4096, PROT_READ | PROT_WRITE));
	set(4, 1);
	C(reg(4) == ~1U);
	C(munmap((void *)(bar + 0x10000), 0x1000) == 0);
	C(reg(4) == ~1U);
	C(*(volatile uint32_t *)(bar + 0x11004) == 0xffffffff);	/* nothing there, but decoded */
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

static void dma(void)
{
	uint8_t *p = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct iommu_ioas_map m = {
		.size = sizeof(m), .ioas_id = ioas, .user_va = (uintptr_t)p, .length = 0x10000, .iova = IOVA,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
	};
	struct iommu_ioas_unmap u = { .size = sizeof(u), .ioas_id = ioas, .iova = IOVA, .length = 0x10000 };

	for (int i = 0; i < 0x4000; i++)
		p[i] = (uint8_t)(i * 7 + (i >> 8));
	T(ioctl(iommu, IOMMU_IOAS_MAP, &m));
	transfer(IOVA + 0xf80, 0x40000, 1000, 0);
	transfer(0x40000, IOVA + 0x5ff0, 1000, 2);
	C(!memcmp(p + 0xf80, p + 0x5ff0, 1000));	/* no master yet: nothing came */
	set_config(4, 2, 6);
	transfer(IOVA + 0xf80, 0x40000, 1000, 0);
	transfer(0x40000, IOVA + 0x5ff0, 1000, 2);
	C(!memcmp(p + 0xf80, p + 0x5ff0, 1000));
	m.user_va = (uintptr_t)bar;
	m.iova = 0x800000;
	m.length = 0x1000;
	T(ioctl(iommu, IOMMU_IOAS_MAP, &m));	/* registers are no memory */
	T(ioctl(iommu, IOMMU_IOAS_UNMAP, &u));
	memset(p, 0x55, 0x10000);
	transfer(0x40000, IOVA, 64, 2);
	C(p[0] == 0x55);
}

static void pin(void)
{
	int e = eventfd(0, EFD_NONBLOCK), other = eventfd(0, EFD_NONBLOCK);
	uint64_t one = 1;

	T(irqs(INTX, NONE | UNMASK, 0, 1, 0));
	T(irqs(INTX, NONE | TRIGGER, 0, 1, 0));
	T(irqs(INTX, EVENT | TRIGGER, 0, 1, 99));
	T(irqs(INTX, EVENT | TRIGGER, 0, 1, 1));
	T(irqs(INTX, EVENT | TRIGGER, 1, 1, e));
	T(irqs(INTX, EVENT | TRIGGER, 0, 2, e));
	T(irqs(INTX, EVENT | TRIGGER, 0, 1, e));
	T(irqs(MSI, EVENT | TRIGGER, 0, 1, e));
	T(signals(e));
	set(0x60, 1);
	T(signals(e));
	T(signals(e));				/* masked since then, and still asserted */
	T(irqs(INTX, NONE | UNMASK, 0, 1, 0));
	T(signals(e));				/* again: nobody acknowledged it */
	set(0x64, 1);
	T(irqs(INTX, NONE | UNMASK, 0, 1, 0));
	T(signals(e));
	T(irqs(INTX, NONE | MASK, 0, 1, 0));
	set(0x60, 2);
	T(signals(e));
	T(irqs(INTX, BOOL | UNMASK, 0, 1, 0));
	T(signals(e));
	T(irqs(INTX, BOOL | UNMASK, 0, 1, 1));
	T(signals(e));
	set(0x64, 2);
	T(irqs(INTX, EVENT | UNMASK, 0, 1, e));	/* what is signalled unmasks at once */
	T(irqs(INTX, NONE | UNMASK, 0, 1, 0));
	set(0x60, 2);
	set(0x64, 2);
	T(signals(e));				/* nothing stays counted */
	T(irqs(INTX, EVENT | UNMASK, 0, 1, other));
	T(irqs(INTX, EVENT | MASK, 0, 1, other));
	T(irqs(INTX, EVENT | UNMASK, 0, 1, -1));
	T(irqs(INTX, EVENT | UNMASK, 0, 1, -1));
	T(irqs(INTX, EVENT | UNMASK, 0, 1, 99));
	T(irqs(INTX, EVENT | UNMASK, 0, 1, 1));
	T(irqs(INTX, EVENT | UNMASK, 0, 1, other));
	set(0x60, 2);
	T(signals(e));
	T(write(other, &one, 8));
	T(signals(e));				/* unmasked, and still asserted */
	T(signals(other));
	set(0x64, 2);
	T(write(other, &one, 8));
	T(signals(e));
	T(irqs(INTX, EVENT | UNMASK, 0, 1, -1));
	T(write(other, &one, 8));
	T(signals(other));
	T(irqs(INTX, EVENT | TRIGGER, 0, 1, other));
	set(0x60, 4);
	T(signals(e));
	T(signals(other));
	set(0x64, 4);
	T(irqs(INTX, NONE | UNMASK, 0, 1, 0));
	set_config(4, 2, 0x406);
	set(0x60, 8);
	T(signals(other));			/* INTX_OFF by the program */
	set_config(4, 2, 6);
	T(signals(other));
	set(0x64, 8);
	T(irqs(INTX, NONE | UNMASK, 0, 1, 0));
	T(irqs(INTX, NONE | TRIGGER, 0, 1, 0));
	T(signals(other));
	T(irqs(INTX, EVENT | TRIGGER, 0, 1, -1));
	set(0x60, 1);
	T(signals(other));
	set(0x64, 1);
	T(irqs(INTX, NONE | TRIGGER, 0, 0, 0));
	T(irqs(INTX, NONE | MASK, 0, 1, 0));
	close(e);
	close(other);
}

static void message(void)
{
	int e = eventfd(0, EFD_NONBLOCK);

	T(irqs(MSI, EVENT | TRIGGER, 0, 2, e));
	T(irqs(MSI, EVENT | TRIGGER, 0, 1, 99));
	T(irqs(MSI, NONE | MASK, 0, 1, 0));
	T(irqs(MSI, EVENT | TRIGGER, 0, 1, e));
	T(irqs(INTX, EVENT | TRIGGER, 0, 1, e));
	for (uint32_t i = 1; i <= 3; i++) {
		set(0x60, i);
		T(signals(e));
		set(0x64, i);
	}
	set(0x60, 1);
	set(0x60, 2);
	C(signals(e) >= 1);			/* two messages, of which the second may meet the first */
	set(0x64, 3);
	T(irqs(MSI, NONE | TRIGGER, 0, 1, 0));
	T(signals(e));
	T(irqs(MSI, BOOL | TRIGGER, 0, 1, 0));
	T(signals(e));
	T(irqs(MSI, NONE | TRIGGER, 0, 0, 0));
	set(0x60, 1);
	T(signals(e));
	set(0x64, 1);
	T(irqs(4, EVENT | TRIGGER, 0, 1, e));
	T(irqs(4, NONE | TRIGGER, 0, 1, 0));
	T(signals(e));
	T(irqs(4, EVENT | TRIGGER, 0, 1, -1));
	T(irqs(4, NONE | TRIGGER, 0, 1, 0));
	T(irqs(2, NONE | TRIGGER, 0, 0, 0));
	T(irqs(5, NONE | TRIGGER, 0, 0, 0));
	T(irqs(MSI, NONE | BOOL | TRIGGER, 0, 1, 0));
	T(irqs(MSI, NONE | MASK | TRIGGER, 0, 1, 0));
	T(irqs(MSI, NONE | TRIGGER | 64, 0, 1, 0));
	close(e);
}

static void reset(void)
{
	struct vfio_device_info d = { .argsz = sizeof(d) };

	ioctl(device, VFIO_DEVICE_GET_INFO, &d);
	if (!(d.flags & VFIO_DEVICE_FLAGS_RESET))
		return;
	set(4, 7);
	T(ioctl(device, VFIO_DEVICE_RESET));
	C(reg(4) == 0);
	C(config(4, 2) & 2);
}

static void close_and_again(const char *path)
{
	set(4, 7);
	C(close(device) == 0);
	C(reg(4) == ~7U);			/* it is open as long as it is mapped */
	munmap((void *)bar, 0x10000);
	munmap((void *)(bar + 0x11000), (1 << 20) - 0x11000);
	device = open(path, O_RDWR);
	T(bind_to(iommu, 16, 0));
	C(!(config(4, 2) & 4));
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "/dev/vfio/devices/vfio0";

	device = open(path, O_RDWR);
	iommu = open("/dev/iommu", O_RDWR);
	C(device >= 0);
	C(iommu >= 0);
	before_bind();
	if (T(bind_to(iommu, 16, 0)))
		return 1;
	T(bind_to(iommu, 16, 0));
	second_file(path);
	attaching();
	information();
	configuration();
	registers();
	dma();
	pin();
	message();
	reset();
	close_and_again(path);
	return 0;
}
