/*
 * vfio.h - a PCI function that belongs to this program: VFIO's device file and an iommufd
 *
 * Linux's interface of 6.6 and later, as little of it as a driver needs. Each call returns what it is asked for or -1
 * with errno, like a system call; what failed is said on stderr.
 */
#ifndef LUEMU_NET_VFIO_H
#define LUEMU_NET_VFIO_H

#include <stdbool.h>
#include <stdint.h>

struct vfio {
	int iommufd, device;
	uint32_t ioas;			/* addresses of the device: an object of the iommufd */
	uint64_t config, bar_size;	/* where configuration space is in the device file */
	volatile uint8_t *bar;
};

/* Finds the function by its identity, binds it to a new iommufd and attaches it to an empty set of addresses. The first
 * of several is taken. A Linux that has its own driver on it is asked for it first. */
int vfio_open(struct vfio *v, uint16_t vendor, uint16_t id);
/* The same of two files that a previous kernel preserved: nothing is written to the device. */
int vfio_adopt(struct vfio *v, int iommufd, int device);
int vfio_map(struct vfio *v, void *memory, uint64_t iova, uint64_t size);	/* for reading and writing */
int vfio_unmap(struct vfio *v, uint64_t iova, uint64_t size);
int vfio_map_bar(struct vfio *v);						/* BAR 0 */
int vfio_master(struct vfio *v, bool on);
int vfio_reset(struct vfio *v);
int vfio_intx(struct vfio *v, int eventfd);		/* -1: off */
int vfio_unmask_intx(struct vfio *v);

#endif
