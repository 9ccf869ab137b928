/* What the files of iommufd share: iommufd.c (the device file and its objects), iommufd_ioas.c (address spaces),
 * iommufd_pin.c (the program's memory), iommufd_device.c (functions), and luo/guest/luo_iommufd.c.
 *
 *	IOAS	an I/O address space: areas of the program's memory, pinned as long as they are mapped
 *	HWPT	a domain of the IOMMU that has all areas of its IOAS
 *	device	a function, in one HWPT or in none
 *
 * One lock for a file. While it is frozen nothing of it changes: it is to be handed over, or was and is not finished.
 */
#pragma once
#include "types.h"
#include "iommufd.h"
#include "list.h"
#include "sched.h"
#include "../../luo/guest/abi_devices.h"

struct iommu_domain;

/* Memory in pieces that are physically contiguous. Each folio in each piece has a reference. */
struct extents {
	struct iommufd_luemu_extent *v;
	u32 nr, room;
};

struct iommufd_area {
	struct list_head list;		/* of the IOAS, by address */
	u64 iova, size;
	u32 prot;			/* IOMMU_READ, IOMMU_WRITE */
	struct extents memory;
};

struct iommufd_range {
	struct list_head list;
	u64 start, last;
};

struct iommufd_object {
	struct list_head list;		/* of the file, by id */
	u32 id, kind;			/* IOMMUFD_LUEMU_… */
	u32 users;			/* objects that need this one */
	union {
		struct {		/* IOAS */
			struct list_head areas, allowed;
			bool small;	/* 4 KiB pages only */
		};
		struct {		/* HWPT */
			struct iommufd_object *ioas;
			struct iommu_domain *domain;
			bool automatic;
		};
		struct {		/* device */
			struct iommufd_object *hwpt;	/* NULL: not attached */
			struct pci_dev *dev;
		};
	};
};

struct iommufd {
	struct file *file;
	struct mutex lock;
	struct list_head objects;
	struct list_head list;		/* of all */
	u32 rlimit_mode;
	bool frozen, incoming;
	u64 pinned;			/* pages, as far as they count against the limit */
};

/* iommufd.c */
extern struct list_head iommufd_all;
extern struct mutex iommufd_all_lock;			/* taken before those of the files */
struct iommufd *iommufd_new(void);			/* NULL */
void iommufd_free(struct iommufd *ctx);			/* with all objects; HWPTs may have adopted domains */
struct file *iommufd_file(struct iommufd *ctx, u32 flags);	/* takes it over; ERR_PTR */
struct iommufd_object *iommufd_object_new(struct iommufd *ctx, u32 kind, u32 id);	/* id 0: any; NULL */
struct iommufd_object *iommufd_find(struct iommufd *ctx, u32 id, u32 kind);		/* kind 0: any; NULL */
void iommufd_object_free(struct iommufd *ctx, struct iommufd_object *o);

/* iommufd_ioas.c */
#define IOMMUFD_MSI_START	0xfee00000UL	/* never translated (VT-d, 3.14) */
#define IOMMUFD_MSI_LAST	0xfeefffffUL
void iommufd_ioas_empty(struct iommufd *ctx, struct iommufd_object *ioas);
/* A HWPT with all that is mapped. ERR_PTR(-ENOMEM, -ENOSPC, -EADDRINUSE: an area where none can be). */
struct iommufd_object *iommufd_hwpt_new(struct iommufd *ctx, struct iommufd_object *ioas, bool automatic);
int iommufd_ioas_ranges(struct iommufd *ctx, void *user, u32 size);
int iommufd_ioas_allow(struct iommufd *ctx, void *user, u32 size);
int iommufd_ioas_map(struct iommufd *ctx, void *user, u32 size);
int iommufd_ioas_copy(struct iommufd *ctx, void *user, u32 size);
int iommufd_ioas_unmap(struct iommufd *ctx, void *user, u32 size);

/* iommufd_pin.c */
int iommufd_pin(u64 addr, u64 size, bool write, struct extents *e);	/* 0, -EFAULT, -ENOMEM; on error nothing is */
int iommufd_extent_add(struct extents *e, phys_addr_t phys, u64 size);	/* -ENOMEM */
void iommufd_unpin(struct extents *e);
void iommufd_pin_again(const struct extents *e);
