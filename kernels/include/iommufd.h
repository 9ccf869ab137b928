/* iommufd inside the kernel: what the VFIO device file needs of /dev/iommu (drivers/iommufd*.c).
 *
 *	BIND_IOMMUFD		iommufd_from_fd, iommufd_bind
 *	ATTACH_IOMMUFD_PT	iommufd_attach (again: replaces)
 *	DETACH_IOMMUFD_PT	iommufd_detach
 *	last close		iommufd_detach, iommufd_unbind, iommufd_put
 *
 * A function that was handed over is bound and attached from the moment its iommufd is retrieved. Binding it to that
 * one, and attaching it to the table that it has, answers 0 and touches no hardware; anything else is -EBUSY until the
 * device is finished.
 */
#pragma once
#include "types.h"

struct file;
struct iommufd;
struct pci_dev;

struct iommufd *iommufd_from_file(struct file *f);	/* a reference; ERR_PTR(-EBADFD): it is something else */
struct iommufd *iommufd_from_fd(int fd);		/* the same; ERR_PTR(-EBADF) too */
void iommufd_get(struct iommufd *ctx);
void iommufd_put(struct iommufd *ctx);

/* Makes a device object; *id is what user space sees. -ENODEV: no remapping unit; -EBUSY: it is bound to another one
 * (or to this); -ENOMEM. */
int iommufd_bind(struct iommufd *ctx, struct pci_dev *dev, u32 *id);
void iommufd_unbind(struct iommufd *ctx, struct pci_dev *dev);	/* detaches */
/* *pt: an IOAS or HWPT; out: the HWPT that it has become. -ENOENT, -EINVAL (an object of another kind, not bound), -EBUSY,
 * -ENOMEM, -ENOSPC. When it fails the device is attached to what it was attached to before. */
int iommufd_attach(struct iommufd *ctx, struct pci_dev *dev, u32 *pt);
void iommufd_detach(struct iommufd *ctx, struct pci_dev *dev);	/* 0 or more times */

/* For the handler of VFIO files. Where a function is bound, by whatever means: 0 and a reference, its object and the
 * HWPT (0: not attached); -ENOENT: nowhere (for an incoming function: its iommufd was not retrieved yet). */
int iommufd_of(struct pci_dev *dev, struct iommufd **ctx, u32 *id, u32 *pt);
bool iommufd_preserved(struct iommufd *ctx);		/* by a file in a session, until unpreserved */
