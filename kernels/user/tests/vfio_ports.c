/* The network card's registers by its I/O BAR (82540EM, 13.3: address at 0, data at 4), against those in memory. */
#include "t.h"
#include <linux/vfio.h>
#include <sys/ioctl.h>

#define PORTS	((off_t)2 << 40)

static int device;

static uint32_t by_port(uint32_t at)
{
	uint32_t v = 0xdeadbeef;

	if (pwrite(device, &at, 4, PORTS) != 4 || pread(device, &v, 4, PORTS + 4) != 4)
		say("ports: %s", strerror(errno));
	return v;
}

static uint32_t by_memory(uint32_t at)
{
	uint32_t v = 0xdeadbeef;

	if (pread(device, &v, 4, at) != 4)
		say("memory: %s", strerror(errno));
	return v;
}

int main(void)
{
	struct vfio_device_bind_iommufd b = { .argsz = 16, .iommufd = open("/dev/iommu", O_RDWR) };
	struct vfio_region_info r = { .argsz = sizeof(r) };
	uint16_t command = 3;
	uint8_t byte;

	device = open("/dev/vfio/devices/vfio0", O_RDWR);
	T(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &b));
	for (r.index = 0; r.index < 3; r.index++) {
		T(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &r));
		say("region %u: flags %#x, %llu bytes", r.index, r.flags, r.size);
	}
	T(pwrite(device, &command, 2, ((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4));
	C(by_port(8) == by_memory(8));
	C(by_port(0x5400) == by_memory(0x5400) && by_memory(0x5400) != 0);
	C(mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, PORTS) == MAP_FAILED && errno == EINVAL);
	T(pread(device, &byte, 1, PORTS + 64));
	command = 0;
	T(pwrite(device, &command, 2, ((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4));
	T(pread(device, &byte, 1, 8));		/* memory is not decoded */
	return 0;
}
