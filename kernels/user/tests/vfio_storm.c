/* Calls of VFIO and iommufd at random, from several processes that share the files: nothing may happen to the kernel.
 *
 *	vfio_storm SEED CALLS
 *
 * What the device may reach, it may write to: a guard page that is never mapped must stay as it is. */
#include "t.h"
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#define CONFIG	((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40)
#define SIZE	0x10000UL

static uint64_t state;
static int devices[3], iommus[2], events[2];
static uint8_t *memory, *guard;
static volatile uint8_t *bar;

static uint64_t any(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}
static uint32_t below(uint32_t n) { return (uint32_t)((any() >> 32) % n); }
static int one_of(const int *fds, uint32_t n) { return fds[below(n)]; }

/* Mostly sensible. */
static uint32_t size_like(uint32_t size) { return below(8) ? size : below(2) ? below(64) : (uint32_t)any(); }
static uint64_t address_like(void)
{
	switch (below(6)) {
	case 0:
		return any();
	case 1:
		return (uint64_t)BAD;
	case 2:
		return (uint64_t)bar;
	default:
		return (uint64_t)memory + below(16) * 4096;
	}
}
static uint64_t iova_like(void) { return below(10) ? (uint64_t)below(64) * 4096 : any(); }
static int fd_like(void) { return below(4) ? one_of(events, 2) : (int)below(12) - 2; }

static void irq(int device)
{
	union {
		struct vfio_irq_set set;
		uint8_t room[sizeof(struct vfio_irq_set) + 8];
	} u = { 0 };
	int fd = fd_like();

	u.set = (struct vfio_irq_set){
		.argsz = size_like(sizeof(u.room)), .flags = below(6) ? (1U << below(3)) | (8U << below(3)) : (uint32_t)any(),
		.index = below(8) ? below(2) : below(7), .start = below(6) ? 0 : below(4), .count = below(6) ? 1 : below(4),
	};
	memcpy(u.room + sizeof(struct vfio_irq_set), &fd, 4);
	ioctl(device, VFIO_DEVICE_SET_IRQS, &u);
}

static void address_space(int iommu)
{
	union {
		struct iommu_ioas_alloc alloc;
		struct iommu_ioas_map map;
		struct iommu_ioas_unmap unmap;
		struct iommu_destroy destroy;
		struct iommu_hwpt_alloc hwpt;
	} u = { 0 };

	switch (below(6)) {
	case 0:
		u.alloc.size = size_like(sizeof(u.alloc));
		ioctl(iommu, IOMMU_IOAS_ALLOC, &u);
		break;
	case 1:
	case 2:
		u.map = (struct iommu_ioas_map){
			.size = size_like(sizeof(u.map)), .flags = below(6) ? 7 : (uint32_t)any(), .ioas_id = below(12),
			.user_va = address_like(), .length = below(6) ? (1 + below(16)) * 4096UL : any(), .iova = iova_like(),
		};
		ioctl(iommu, IOMMU_IOAS_MAP, &u);
		break;
	case 3:
		u.unmap = (struct iommu_ioas_unmap){
			.size = size_like(sizeof(u.unmap)), .ioas_id = below(12), .iova = iova_like(),
			.length = below(4) ? (1 + below(64)) * 4096UL : ~0UL,
		};
		ioctl(iommu, IOMMU_IOAS_UNMAP, &u);
		break;
	case 4:
		u.destroy = (struct iommu_destroy){ .size = size_like(sizeof(u.destroy)), .id = below(12) };
		ioctl(iommu, IOMMU_DESTROY, &u);
		break;
	default:
		u.hwpt = (struct iommu_hwpt_alloc){ .size = size_like(sizeof(u.hwpt)), .dev_id = below(8), .pt_id = below(8) };
		ioctl(iommu, IOMMU_HWPT_ALLOC, &u);
	}
}

static void register_write(void)
{
	static const uint16_t known[] = { 4, 8, 0x20, 0x60, 0x64, 0x80, 0x88, 0x90, 0x98 };
	uint32_t at = known[below(9)], value = (uint32_t)any();
	int device = one_of(devices, 3);

	if (at == 0x80 || at == 0x88)
		value = below(2) ? 0x40000 + below(4096) : below(64) * 4096;
	else if (at == 0x90)
		value = below(4200);
	else if (at == 0x98)
		value = below(8);
	pwrite(device, &value, 4, at);		/* not by the mapping: it may be a SIGBUS */
}

static void step(void)
{
	int device = one_of(devices, 3);
	uint8_t room[64];
	uint32_t value = (uint32_t)any();

	switch (below(12)) {
	case 0: {
		struct vfio_device_bind_iommufd b = { .argsz = size_like(16), .flags = below(9) ? 0 : value, .iommufd = one_of(iommus, 2) };
		ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &b);
		break;
	}
	case 1: {
		struct vfio_device_attach_iommufd_pt a = { .argsz = size_like(12), .flags = below(9) ? 0 : value, .pt_id = below(12) };
		ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &a);
		break;
	}
	case 2:
		if (!below(4)) {
			struct vfio_device_detach_iommufd_pt d = { .argsz = size_like(8) };
			ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &d);
		}
		break;
	case 3:
	case 4:
		irq(device);
		break;
	case 5:
	case 6:
		address_space(one_of(iommus, 2));
		break;
	case 7:
		memset(room, 0, sizeof(room));
		memcpy(room, &(uint32_t[]){ size_like(32), 0, below(12) }, 12);
		ioctl(device, 0x3b00 + 100 + 7 + below(14), room);
		break;
	case 8:
		pwrite(device, &value, 1UL << below(3), CONFIG + below(below(4) ? 0x70 : 0x104));
		if (below(2)) {			/* and on again, or little happens */
			value = 6;
			pwrite(device, &value, 2, CONFIG + 4);
		}
		break;
	case 9:
		pread(device, room, below(64), ((off_t)below(10) << 40) + below(0x200));
		break;
	default:
		register_write();
	}
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	long calls = argc > 2 ? atol(argv[2]) : 10000;
	int bad = 0;

	for (int i = 0; i < 2; i++) {
		iommus[i] = open("/dev/iommu", O_RDWR);
		events[i] = eventfd(0, EFD_NONBLOCK);
	}
	for (int i = 0; i < 3; i++)
		devices[i] = open(i < 2 ? "/dev/vfio/devices/vfio0" : "/dev/vfio/devices/vfio1", O_RDWR);
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	guard = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, devices[0], 0);
	memset(guard, 0x5a, SIZE);
	for (int child = 0; child < 2; child++)
		if (!fork()) {
			state = (seed + (uint64_t)child) * 0x9e3779b97f4a7c15UL + 1;
			for (long i = 0; i < calls; i++)
				step();
			_exit(0);
		}
	for (int child = 0; child < 2; child++) {
		int status;

		wait(&status);
		say_status("child", status);
	}
	for (unsigned long i = 0; i < SIZE; i++)
		bad += guard[i] != 0x5a;
	C(bad == 0);
	return 0;
}
