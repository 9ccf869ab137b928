/*
 * vfio.c - a PCI function that belongs to this program (vfio.h)
 */
#define _GNU_SOURCE
#include "vfio.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define DEVICES_MAX	64
#define COMMAND		4
#define COMMAND_MEMORY	2
#define COMMAND_MASTER	4

static int wrong(const char *what)
{
	int error = errno;

	fprintf(stderr, "net: %s: %s\n", what, strerror(error));
	errno = error;
	return -1;
}

static int bind(struct vfio *v)
{
	struct vfio_device_bind_iommufd b = { .argsz = sizeof(b), .iommufd = v->iommufd };

	return ioctl(v->device, VFIO_DEVICE_BIND_IOMMUFD, &b);
}

static int find_config(struct vfio *v)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = VFIO_PCI_CONFIG_REGION_INDEX };

	if (ioctl(v->device, VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
		return -1;
	v->config = info.offset;
	return 0;
}

/* Is this the function that is wanted? It tells only whom it belongs to. */
static bool is(struct vfio *v, uint32_t identity)
{
	uint32_t found;

	return bind(v) == 0 && find_config(v) == 0 &&
	       pread(v->device, &found, sizeof(found), (off_t)v->config) == sizeof(found) && found == identity;
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		wrong(path);
	close(fd);
}

/* On a real Linux the function has to be given to vfio-pci first. All of ours are on bus 0 or 1. */
static void take_from_driver(uint32_t identity)
{
	for (unsigned int place = 0; place < 2 * 256; place++) {
		char path[96], name[16], text[16];
		uint32_t found = 0;
		int fd;

		snprintf(name, sizeof(name), "0000:%02x:%02x.%x", place >> 8, place >> 3 & 31, place & 7);
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (pread(fd, &found, sizeof(found), 0) != sizeof(found))
			found = 0;
		close(fd);
		if (found != identity)
			continue;
		snprintf(text, sizeof(text), "%s\n", name);
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver/unbind", name);
		put(path, text);
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override", name);
		put(path, "vfio-pci\n");
		put("/sys/bus/pci/drivers_probe", text);
		return;
	}
}

static int find(struct vfio *v, uint32_t identity)
{
	for (unsigned int i = 0; i < DEVICES_MAX; i++) {
		char path[48];

		snprintf(path, sizeof(path), "/dev/vfio/devices/vfio%u", i);
		v->device = open(path, O_RDWR | O_CLOEXEC);
		if (v->device < 0)
			continue;
		if (is(v, identity))
			return 0;
		close(v->device);
	}
	v->device = -1;
	errno = ENODEV;
	return -1;
}

static int attach(struct vfio *v)
{
	struct iommu_ioas_alloc ioas = { .size = sizeof(ioas) };
	struct vfio_device_attach_iommufd_pt a = { .argsz = sizeof(a) };

	if (ioctl(v->iommufd, IOMMU_IOAS_ALLOC, &ioas) < 0)
		return wrong("allocate addresses");
	v->ioas = a.pt_id = ioas.out_ioas_id;
	return ioctl(v->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &a) < 0 ? wrong("attach the device") : 0;
}

int vfio_open(struct vfio *v, uint16_t vendor, uint16_t id)
{
	uint32_t identity = (uint32_t)id << 16 | vendor;

	*v = (struct vfio){ .device = -1 };
	v->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (v->iommufd < 0)
		return wrong("/dev/iommu");
	if (find(v, identity) < 0) {
		take_from_driver(identity);
		if (find(v, identity) < 0)
			return wrong("no device for this driver in /dev/vfio/devices");
	}
	return attach(v);
}

int vfio_adopt(struct vfio *v, int iommufd, int device)
{
	*v = (struct vfio){ .iommufd = iommufd, .device = device };
	return find_config(v) < 0 ? wrong("the preserved device") : 0;
}

int vfio_map(struct vfio *v, void *memory, uint64_t iova, uint64_t size)
{
	struct iommu_ioas_map m = {
		.size = sizeof(m),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = v->ioas,
		.user_va = (uintptr_t)memory,
		.length = size,
		.iova = iova,
	};

	return ioctl(v->iommufd, IOMMU_IOAS_MAP, &m) < 0 ? wrong("map memory for the device") : 0;
}

int vfio_unmap(struct vfio *v, uint64_t iova, uint64_t size)
{
	struct iommu_ioas_unmap u = { .size = sizeof(u), .ioas_id = v->ioas, .iova = iova, .length = size };

	return ioctl(v->iommufd, IOMMU_IOAS_UNMAP, &u) < 0 ? wrong("unmap memory") : 0;
}

int vfio_map_bar(struct vfio *v)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = VFIO_PCI_BAR0_REGION_INDEX };
	void *p;

	if (ioctl(v->device, VFIO_DEVICE_GET_REGION_INFO, &info) < 0)
		return wrong("BAR 0");
	p = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, v->device, (off_t)info.offset);
	if (p == MAP_FAILED)
		return wrong("map BAR 0");
	v->bar = p;
	v->bar_size = info.size;
	return 0;
}

int vfio_master(struct vfio *v, bool on)
{
	uint16_t command;

	if (pread(v->device, &command, sizeof(command), (off_t)v->config + COMMAND) != sizeof(command))
		return wrong("read configuration space");
	command = (uint16_t)(on ? command | COMMAND_MEMORY | COMMAND_MASTER : command & ~COMMAND_MASTER);
	if (pwrite(v->device, &command, sizeof(command), (off_t)v->config + COMMAND) != sizeof(command))
		return wrong("write configuration space");
	return 0;
}

int vfio_reset(struct vfio *v)
{
	return ioctl(v->device, VFIO_DEVICE_RESET);
}

static int set_intx(struct vfio *v, uint32_t flags, uint32_t count, int eventfd)
{
	union {
		struct vfio_irq_set set;
		uint8_t room[sizeof(struct vfio_irq_set) + sizeof(int32_t)];
	} u = { .set = { .argsz = sizeof(u.room), .flags = flags, .index = VFIO_PCI_INTX_IRQ_INDEX, .count = count } };
	int32_t fd = eventfd;

	if (flags & VFIO_IRQ_SET_DATA_EVENTFD)
		memcpy(u.room + sizeof(struct vfio_irq_set), &fd, sizeof(fd));
	else
		u.set.argsz = sizeof(struct vfio_irq_set);
	return ioctl(v->device, VFIO_DEVICE_SET_IRQS, &u.set);
}

int vfio_intx(struct vfio *v, int eventfd)
{
	int done = eventfd >= 0 ?
		set_intx(v, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, 1, eventfd) :
		set_intx(v, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, -1);

	return done < 0 ? wrong("interrupts") : 0;
}

int vfio_unmask_intx(struct vfio *v)
{
	return set_intx(v, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 1, -1) < 0 ? wrong("unmask") : 0;
}
