/* VFIO device files (/dev/vfio/devices/vfioN): functions in the hands of programs. Numbers and structures are Linux's
 * (include/uapi/linux/vfio.h); the file is bound to an iommufd and attached to an address space by its ioctls.
 *
 *	vfio_pci.c	which functions, and their device files
 *	vfio.c		the file and its ioctls
 *	vfio_region.c	reading, writing and mapping of BARs
 *	vfio_config.c	configuration space as the program sees it
 *	vfio_irq.c	interrupts to eventfds
 */
#pragma once
#include "types.h"
#include "ktimer.h"
#include "list.h"
#include "pagecache.h"
#include "pci.h"
#include "sched.h"

struct file;
struct iommufd;

/* ---- user interface ---- */

#define VFIO_IO(n)			(0x3b00U + 100 + (n))
#define VFIO_DEVICE_GET_INFO		VFIO_IO(7)
#define VFIO_DEVICE_GET_REGION_INFO	VFIO_IO(8)
#define VFIO_DEVICE_GET_IRQ_INFO	VFIO_IO(9)
#define VFIO_DEVICE_SET_IRQS		VFIO_IO(10)
#define VFIO_DEVICE_RESET		VFIO_IO(11)
#define VFIO_DEVICE_BIND_IOMMUFD	VFIO_IO(18)
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT	VFIO_IO(19)
#define VFIO_DEVICE_DETACH_IOMMUFD_PT	VFIO_IO(20)

struct vfio_device_info {
	u32 argsz, flags, num_regions, num_irqs, cap_offset, pad;
};
#define VFIO_DEVICE_FLAGS_RESET	1
#define VFIO_DEVICE_FLAGS_PCI	2

struct vfio_region_info {
	u32 argsz, flags, index, cap_offset;
	u64 size, offset;
};
#define VFIO_REGION_READ	1
#define VFIO_REGION_WRITE	2
#define VFIO_REGION_MMAP	4

enum { VFIO_REGION_BAR0, VFIO_REGION_ROM = 6, VFIO_REGION_CONFIG, VFIO_REGION_VGA, VFIO_REGIONS };
#define VFIO_OFFSET_SHIFT	40		/* of a region's index in file positions */

struct vfio_irq_info {
	u32 argsz, flags, index, count;
};
#define VFIO_IRQ_EVENTFD	1
#define VFIO_IRQ_MASKABLE	2
#define VFIO_IRQ_AUTOMASKED	4
#define VFIO_IRQ_NORESIZE	8

enum { VFIO_INTX, VFIO_MSI, VFIO_MSIX, VFIO_ERR, VFIO_REQ, VFIO_IRQS };

struct vfio_irq_set {
	u32 argsz, flags, index, start, count;
};
#define VFIO_DATA_NONE		1
#define VFIO_DATA_BOOL		2
#define VFIO_DATA_EVENTFD	4
#define VFIO_DATA_MASK		7
#define VFIO_ACTION_MASK	8
#define VFIO_ACTION_UNMASK	16
#define VFIO_ACTION_TRIGGER	32
#define VFIO_ACTION_ALL		56

struct vfio_bind {
	u32 argsz, flags;
	s32 iommufd;
	u32 out_devid;
};
struct vfio_attach {
	u32 argsz, flags, pt_id, pasid;
};
struct vfio_detach {
	u32 argsz, flags, pasid;
};
#define VFIO_ATTACH_PASID	1

static_assert(sizeof(struct vfio_device_info) == 24 && sizeof(struct vfio_region_info) == 32, "user ABI");
static_assert(sizeof(struct vfio_irq_info) == 16 && sizeof(struct vfio_irq_set) == 20, "user ABI");
static_assert(sizeof(struct vfio_bind) == 16 && sizeof(struct vfio_attach) == 16, "user ABI");

/* ---- a device ---- */

#define VFIO_CONFIG_SIZE	256

struct vfio_device {
	struct list_head list;		/* of all, by number */
	struct pci_dev *dev;
	u32 nr;
	struct dentry *node;
	struct mutex lock;		/* all that follows */
	struct vfio_file *owner;	/* the file that is bound, NULL */
	struct mapping areas;		/* of programs that map BARs; no pages */
	bool frozen;			/* is to be handed over: no reset, no other iommufd */
	bool written_down;		/* it is being handed over: nothing changes any more */
	bool can_reset;

	/* what the program sees of configuration space, and which bits of it are this (virt) or may be written */
	u8 config[VFIO_CONFIG_SIZE], virt[VFIO_CONFIG_SIZE], writable[VFIO_CONFIG_SIZE];
	u8 msi, pm, af, exp;		/* capabilities' places, 0: none */

	u32 irq;			/* VFIO_INTX, VFIO_MSI; VFIO_IRQS: off */
	spinlock_t irq_lock;		/* trigger, masked: the interrupt reads them */
	struct file *trigger;		/* eventfd; NULL: nobody listens */
	struct file *request;
	struct file *unmask;		/* eventfd; NULL: none. Written to, it unmasks INTx */
	struct ktimer unmask_later;
	bool passing_on;		/* INTx is being signalled */
	bool masked;			/* INTx: by the program, or since it came */
	bool masked_by_command;		/* the program's INTX_OFF */
	bool resume;			/* on since the previous kernel; the handler comes with the first listener */
	bool make_up;			/* one may have been lost over the update: the first listener is told once */
};

struct vfio_file {
	struct vfio_device *v;
	struct iommufd *iommufd;	/* not NULL: bound */
	u32 id, pt;			/* pt 0: not attached */
};

extern struct list_head vfio_devices;
extern const struct file_ops vfio_file_ops;
struct vfio_device *vfio_of(struct pci_dev *dev);

/* vfio.c; lock held */
bool vfio_is_bound(struct vfio_file *vf);	/* also, from now on, by an iommufd that was retrieved */
void vfio_start(struct vfio_device *v);		/* bound: as after a reset, decoded, no master */
void vfio_stop(struct vfio_device *v);

/* vfio_region.c */
struct vma;
ssize_t vfio_read(struct file *f, void *user, u64 size, loff_t *pos);
ssize_t vfio_write(struct file *f, const void *user, u64 size, loff_t *pos);
loff_t vfio_llseek(struct file *f, loff_t off, int whence);
int vfio_mmap(struct file *f, struct vma *vma);
int vfio_device_page(struct file *f, u64 page, phys_addr_t *phys);

/* vfio_config.c; lock held */
void vfio_config_init(struct vfio_device *v);
ssize_t vfio_config_rw(struct vfio_device *v, u64 at, void *user, u64 size, bool write);
bool vfio_memory_enabled(const struct vfio_device *v);
int vfio_reset(struct vfio_device *v);		/* 0, -ENOTTY, -EBUSY */

/* vfio_irq.c; lock held */
int vfio_irq_count(struct vfio_device *v, u32 index);
int vfio_set_irqs(struct vfio_device *v, const struct vfio_irq_set *set, const void *data);
void vfio_irq_disable(struct vfio_device *v);
void vfio_intx_mask(struct vfio_device *v, bool by_command);
void vfio_intx_unmask(struct vfio_device *v, bool by_command);
void vfio_unmask_later(struct ktimer *t);
