/* init for a Linux with VFIO: owns the educational device at 00:03.0 from user space, moves memory with it through
 * Linux's own IOMMU tables, takes its interrupts, and prints what it saw. Prints the same on every machine. */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICE "0000:00:03.0"
#define BUFFER (2UL << 20)
#define SMALL_IOVA 0x100000UL
#define LARGE_IOVA 0x400000UL

static int device = -1;
static volatile uint8_t *bar;
static uint64_t config;

static void end(const char *why) {
	printf("%s: %s\n", why, strerror(errno));
	fflush(stdout);
	sync();
	reboot(RB_POWER_OFF);
}

static uint32_t read_register(unsigned at) { return *(volatile uint32_t *)(bar + at); }
static void write_register(unsigned at, uint32_t value) { *(volatile uint32_t *)(bar + at) = value; }

static void put(const char *path, const char *text) {
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		end(path);
	close(fd);
}

static void transfer(uint64_t from, uint64_t to, uint32_t bytes, uint32_t command) {
	*(volatile uint64_t *)(bar + 0x80) = from;
	*(volatile uint64_t *)(bar + 0x88) = to;
	*(volatile uint64_t *)(bar + 0x90) = bytes;
	write_register(0x98, command | 1);
	while (read_register(0x98) & 1)
		usleep(1000);
}

static void map(int container, void *at, uint64_t iova, uint64_t bytes) {
	struct vfio_iommu_type1_dma_map m = {
			.argsz = sizeof m, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
			.vaddr = (uintptr_t)at, .iova = iova, .size = bytes};
	if (ioctl(container, VFIO_IOMMU_MAP_DMA, &m))
		end("map");
}

static void unmap(int container, uint64_t iova, uint64_t bytes) {
	struct vfio_iommu_type1_dma_unmap u = {.argsz = sizeof u, .iova = iova, .size = bytes};
	if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &u))
		end("unmap");
	printf("unmapped %llu bytes\n", (unsigned long long)u.size);
}

static void interrupt(unsigned index, uint32_t flags, int fd) {
	uint8_t room[sizeof(struct vfio_irq_set) + 4] = {0};
	struct vfio_irq_set *set = (void *)room;
	*set = (struct vfio_irq_set){.argsz = sizeof room, .flags = flags, .index = index, .start = 0, .count = 1};
	memcpy(set->data, &fd, 4);
	if (!(flags & VFIO_IRQ_SET_DATA_EVENTFD))
		set->argsz = sizeof *set;
	if (ioctl(device, VFIO_DEVICE_SET_IRQS, set))
		end("interrupts");
}

static uint64_t wait_for(int fd) {
	uint64_t count = 0;
	if (read(fd, &count, 8) != 8)
		end("eventfd");
	return count;
}

static int open_container(void) {
	put("/sys/bus/pci/devices/" DEVICE "/driver_override", "vfio-pci");
	put("/sys/bus/pci/drivers_probe", DEVICE);
	char link[256] = {0}, path[300];
	if (readlink("/sys/bus/pci/devices/" DEVICE "/iommu_group", link, sizeof link - 1) < 0)
		end("iommu_group");
	snprintf(path, sizeof path, "/dev/vfio%s", strrchr(link, '/'));
	int container = open("/dev/vfio/vfio", O_RDWR), group = open(path, O_RDWR);
	struct vfio_group_status status = {.argsz = sizeof status};
	if (container < 0 || group < 0 || ioctl(group, VFIO_GROUP_GET_STATUS, &status))
		end(path);
	printf("api %d, type1v2 %d, viable %d\n", ioctl(container, VFIO_GET_API_VERSION),
				 ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU), status.flags & 1);
	if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) ||
			ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		end("container");
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, DEVICE);
	if (device < 0)
		end("device");
	return container;
}

static void open_device(void) {
	struct vfio_region_info info = {.argsz = sizeof info, .index = VFIO_PCI_BAR0_REGION_INDEX};
	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info))
		end("BAR 0");
	bar = mmap(NULL, info.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)info.offset);
	printf("BAR 0 has %llu bytes\n", (unsigned long long)info.size);
	info = (struct vfio_region_info){.argsz = sizeof info, .index = VFIO_PCI_CONFIG_REGION_INDEX};
	if (bar == MAP_FAILED || ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info))
		end("configuration space");
	config = info.offset;
	uint32_t identity;
	uint16_t command;
	pread(device, &identity, 4, (off_t)config);
	pread(device, &command, 2, (off_t)config + 4);
	command |= 6;
	pwrite(device, &command, 2, (off_t)config + 4);
	printf("device %08x, edu %08x\n", identity, read_register(0));
	write_register(4, 0x12345678);
	printf("liveness %08x\n", read_register(4));
}

static void move(uint8_t *memory, uint64_t iova, const char *what) {
	for (unsigned i = 0; i < 0x4000; i++)
		memory[i] = (uint8_t)(i * 7 + (i >> 8));
	memset(memory + 0x4000, 0, 0x4000);
	transfer(iova + 0xf80, 0x40000, 1000, 0);     /* over a page boundary */
	transfer(0x40000, iova + 0x5ff0, 1000, 2);
	int wrong = memcmp(memory + 0xf80, memory + 0x5ff0, 1000) != 0;
	int around = memory[0x5fef] | memory[0x5ff0 + 1000];
	printf("%s: %s, around it %d\n", what, wrong ? "differs" : "same", around);
}

int main(void) {
	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	if (!freopen("/dev/console", "w", stdout))
		return 1;
	printf("vfio: started\n");
	int container = open_container();
	uint8_t *large = aligned_alloc(BUFFER, BUFFER), *small = aligned_alloc(4096, 0x10000);
	madvise(large, BUFFER, MADV_HUGEPAGE);
	memset(large, 0, BUFFER), memset(small, 0, 0x10000);
	map(container, small, SMALL_IOVA, 0x10000);
	map(container, large, LARGE_IOVA, BUFFER);
	open_device();
	move(small, SMALL_IOVA, "small pages");
	move(large + 0x123000, LARGE_IOVA + 0x123000, "large page");

	int message = eventfd(0, 0), pin = eventfd(0, 0);
	interrupt(VFIO_PCI_MSI_IRQ_INDEX, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, message);
	write_register(0x60, 0x10);
	printf("message: %llu, bits %x\n", (unsigned long long)wait_for(message), read_register(0x24));
	write_register(0x64, 0x10);
	*(volatile uint64_t *)(bar + 0x80) = SMALL_IOVA;
	transfer(SMALL_IOVA, 0x40000, 64, 4);
	printf("message of a transfer: %llu, bits %x\n", (unsigned long long)wait_for(message), read_register(0x24));
	write_register(0x64, 0x100);
	uint8_t none[sizeof(struct vfio_irq_set)];
	struct vfio_irq_set *off = (void *)none;
	*off = (struct vfio_irq_set){.argsz = sizeof none, .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
															 .index = VFIO_PCI_MSI_IRQ_INDEX, .start = 0, .count = 0};
	if (ioctl(device, VFIO_DEVICE_SET_IRQS, off))
		end("messages off");

	interrupt(VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, pin);
	for (unsigned i = 1; i <= 3; i++) {
		write_register(0x60, i);
		printf("pin: %llu, bits %x\n", (unsigned long long)wait_for(pin), read_register(0x24));
		write_register(0x64, i);
		interrupt(VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 0);
	}

	unmap(container, LARGE_IOVA, BUFFER);
	memset(large, 0x55, BUFFER);
	transfer(0x40000, LARGE_IOVA + 0x1000, 64, 2);
	printf("after unmap: %02x\n", large[0x1000]);
	move(small, SMALL_IOVA, "small pages still");

	struct vfio_device_info info = {.argsz = sizeof info};
	if (!ioctl(device, VFIO_DEVICE_GET_INFO, &info) && info.flags & VFIO_DEVICE_FLAGS_RESET) {
		int failed = ioctl(device, VFIO_DEVICE_RESET);
		printf("reset: %d, liveness %08x\n", failed, read_register(4));
	}
	unmap(container, SMALL_IOVA, 0x10000);
	printf("vfio: done\n");
	fflush(stdout);
	reboot(RB_POWER_OFF);
	return 0;
}
