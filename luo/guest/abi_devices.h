/* Formats of what is handed over about devices. They are this project's own, documented in docs/abi-devices.md; the same
 * facts for the host are in ../abi_devices.py, and a test compares the two through DWARF. Integers are little-endian;
 * what is reserved is 0.
 *
 * A checksum is over the 64-bit words that follow it, from 0: sum = (sum ^ word) * DEVICES_SUM_FACTOR.
 */
#pragma once
#include "../../kernels/include/types.h"

enum devices_abi {
	/* iommu-luemu-v1 */
	IOMMU_LUEMU_DOMAINS = 64,
	IOMMU_LUEMU_DEVICES = 128,
	IOMMU_LUEMU_FILES = 64,

	/* iommufd-luemu-v1 */
	IOMMUFD_LUEMU_IOAS = 1,
	IOMMUFD_LUEMU_HWPT = 2,
	IOMMUFD_LUEMU_DEVICE = 3,
	IOMMUFD_LUEMU_AUTO = 1,		/* flag of a HWPT: made by attaching to its IOAS, goes with the last device */
	IOMMUFD_LUEMU_SMALL = 2,	/* flag of an IOAS: IOMMU_OPTION_HUGE_PAGES is off */
	IOMMUFD_LUEMU_READ = 1,
	IOMMUFD_LUEMU_WRITE = 2,
	IOMMUFD_LUEMU_ALLOWED = 2,	/* kind of a range: of IOMMU_IOAS_ALLOW_IOVAS */
};
#define DEVICES_SUM_FACTOR	0x100000001b3UL

static inline u64 devices_sum(const void *p, u64 size)
{
	const u64 *words = p;
	u64 sum = 0;

#pragma unroll 8
	for (u64 i = 0; i < size / 8; i++)
		sum = (sum ^ words[i]) * DEVICES_SUM_FACTOR;
	return sum;
}

/* ---- iommu-luemu-v1: FLB of DMA remapping; one page, its data is the address ---- */

#define IOMMU_LUEMU_COMPATIBLE	"iommu-luemu-v1"

struct iommu_luemu_domain {
	u32 id;				/* as in context entries */
	u32 levels;			/* of its tables: 3 or 4 */
	u64 top;			/* its first table */
	u64 nr_tables;
	u64 bytes;			/* mapped */
};
static_assert(sizeof(struct iommu_luemu_domain) == 32, "iommu-luemu-v1");

struct iommu_luemu_device {
	u16 bdf, reserved;
	u32 domain;			/* id */
};
static_assert(sizeof(struct iommu_luemu_device) == 8, "iommu-luemu-v1");

struct iommu_luemu_ser {
	u64 checksum;
	u32 nr_domains, nr_devices, nr_files, reserved;
	u64 unit;			/* its registers */
	u64 capabilities, extended;	/* CAP and ECAP */
	u64 root;			/* RTADDR */
	u64 interrupts;			/* IRTA; 0: interrupts are not remapped */
	u64 reserved2[8];
	struct iommu_luemu_domain domains[IOMMU_LUEMU_DOMAINS];
	struct iommu_luemu_device devices[IOMMU_LUEMU_DEVICES];	/* all whose context entry is present */
	u64 files[IOMMU_LUEMU_FILES];	/* records of iommufd-luemu-v1 */
	u64 reserved3[48];
};
static_assert(sizeof(struct iommu_luemu_ser) == 4096, "iommu-luemu-v1");

/* ---- iommufd-luemu-v1: a file; a block of 2^n pages, its data is the address ---- */

#define IOMMUFD_LUEMU_COMPATIBLE "iommufd-luemu-v1"

/* Header, then objects, areas, extents and ranges without gaps. */
struct iommufd_luemu_ser {
	u64 checksum;			/* of the rest of `size` bytes */
	u64 size;
	u32 nr_objects, nr_areas, nr_extents, nr_ranges;
	u32 rlimit_mode;		/* IOMMU_OPTION_RLIMIT_MODE */
	u32 reserved;
	u64 reserved2[2];
};
static_assert(sizeof(struct iommufd_luemu_ser) == 56, "iommufd-luemu-v1");

struct iommufd_luemu_object {
	u32 id, kind;
	u32 parent;			/* HWPT: its IOAS; device: the HWPT it is attached to, or 0 */
	u32 flags;
	u32 arg;			/* HWPT: domain; device: bus << 8 | slot << 3 | function */
	u32 reserved;
};
static_assert(sizeof(struct iommufd_luemu_object) == 24, "iommufd-luemu-v1");

struct iommufd_luemu_area {		/* by IOAS and address */
	u64 iova, size;
	u32 ioas, prot;
	u32 first_extent, nr_extents;	/* its memory, in order */
};
static_assert(sizeof(struct iommufd_luemu_area) == 32, "iommufd-luemu-v1");

struct iommufd_luemu_extent {
	u64 phys, size;
};
static_assert(sizeof(struct iommufd_luemu_extent) == 16, "iommufd-luemu-v1");

struct iommufd_luemu_range {
	u64 start, last;
	u32 ioas, kind;
};
static_assert(sizeof(struct iommufd_luemu_range) == 24, "iommufd-luemu-v1");

/* ---- pci-luemu-v1: FLB of the PCI core; one page, its data is the address ---- */

#define PCI_LUEMU_COMPATIBLE	"pci-luemu-v1"
enum pci_luemu_abi {
	PCI_LUEMU_FUNCTIONS = 32,
	PCI_LUEMU_BARS = 6,
	PCI_LUEMU_BRIDGE = 1,		/* flag: it is above one that goes over, and must stay as it is */
};

struct pci_luemu_function {		/* by bus, slot, function */
	u16 bdf, vendor, device, flags;
	u32 class;			/* class, subclass, interface */
	u8 header, secondary, reserved[2];	/* secondary: the bus behind a bridge */
	u64 bar[PCI_LUEMU_BARS];	/* as in the register, with its low bits; the upper half of a wide one is with its lower */
	u64 size[PCI_LUEMU_BARS];	/* 0: no such BAR */
};
static_assert(sizeof(struct pci_luemu_function) == 112, "pci-luemu-v1");

struct pci_luemu_ser {
	u64 checksum;			/* of the rest of the page */
	u32 nr_functions, reserved;
	u64 reserved2[6];
	struct pci_luemu_function functions[PCI_LUEMU_FUNCTIONS];
	u64 reserved3[56];
};
static_assert(sizeof(struct pci_luemu_ser) == 4096, "pci-luemu-v1");

/* ---- vfio-pci-luemu-v1: a file; one page, its data is the address ---- */

#define VFIO_LUEMU_COMPATIBLE	"vfio-pci-luemu-v1"
enum vfio_luemu_abi {
	VFIO_LUEMU_INTX = 0,		/* irq: VFIO's index */
	VFIO_LUEMU_MSI = 1,
	VFIO_LUEMU_NO_IRQ = 5,
	VFIO_LUEMU_MASKED = 1,		/* flags: the pin, by VFIO */
	VFIO_LUEMU_INTX_OFF = 2,	/* by the program, in COMMAND */
	VFIO_LUEMU_MAKE_UP = 4,		/* an interrupt may have been lost: the first listener is told */
	VFIO_LUEMU_RESET = 8,		/* the function can be reset */
	VFIO_LUEMU_CONFIG = 256,
};

struct vfio_luemu_ser {
	u64 checksum;			/* of the rest of the structure */
	u16 bdf, vendor, device, reserved;
	u32 irq, flags;
	u32 object, table;		/* ids in the iommufd: device, HWPT */
	u64 reserved2[3];
	u8 config[VFIO_LUEMU_CONFIG];	/* what the program sees where it does not see the function's own */
};
static_assert(sizeof(struct vfio_luemu_ser) == 312, "vfio-pci-luemu-v1");
