/* The user interface of /dev/iommu: numbers and structures of Linux (include/uapi/linux/iommufd.h), as far as they are
 * here. Every structure begins with its size as the program knows it. */
#pragma once
#include "types.h"

#define IOMMUFD_CMD(n)		(';' << 8 | (n))
enum {
	IOMMU_DESTROY = IOMMUFD_CMD(0x80), IOMMU_IOAS_ALLOC = IOMMUFD_CMD(0x81),
	IOMMU_IOAS_ALLOW_IOVAS = IOMMUFD_CMD(0x82), IOMMU_IOAS_COPY = IOMMUFD_CMD(0x83),
	IOMMU_IOAS_IOVA_RANGES = IOMMUFD_CMD(0x84), IOMMU_IOAS_MAP = IOMMUFD_CMD(0x85),
	IOMMU_IOAS_UNMAP = IOMMUFD_CMD(0x86), IOMMU_OPTION = IOMMUFD_CMD(0x87), IOMMU_HWPT_ALLOC = IOMMUFD_CMD(0x89),
};

struct iommu_destroy {
	u32 size, id;
};
struct iommu_ioas_alloc {
	u32 size, flags, out_ioas_id;
};
struct iommu_iova_range {
	u64 start, last;
};
struct iommu_ioas_iova_ranges {
	u32 size, ioas_id, num_iovas, reserved;
	u64 allowed_iovas;		/* array of iommu_iova_range */
	u64 out_iova_alignment;
};
struct iommu_ioas_allow_iovas {
	u32 size, ioas_id, num_iovas, reserved;
	u64 allowed_iovas;
};

#define IOMMU_IOAS_MAP_FIXED_IOVA 1
#define IOMMU_IOAS_MAP_WRITEABLE 2
#define IOMMU_IOAS_MAP_READABLE	4
struct iommu_ioas_map {
	u32 size, flags, ioas_id, reserved;
	u64 user_va, length, iova;
};
struct iommu_ioas_copy {
	u32 size, flags, dst_ioas_id, src_ioas_id;
	u64 length, dst_iova, src_iova;
};
struct iommu_ioas_unmap {
	u32 size, ioas_id;
	u64 iova, length;
};

enum { IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_HUGE_PAGES };
enum { IOMMU_OPTION_OP_SET, IOMMU_OPTION_OP_GET };
struct iommu_option {
	u32 size, option_id;
	u16 op, reserved;
	u32 object_id;
	u64 val64;
};
struct iommu_hwpt_alloc {
	u32 size, flags, dev_id, pt_id, out_hwpt_id, reserved, data_type, data_len;
	u64 data_uptr;
	u32 fault_id, reserved2;
};
static_assert(sizeof(struct iommu_destroy) == 8 && sizeof(struct iommu_ioas_alloc) == 12, "user ABI");
static_assert(sizeof(struct iommu_ioas_iova_ranges) == 32 && sizeof(struct iommu_ioas_allow_iovas) == 24, "user ABI");
static_assert(sizeof(struct iommu_ioas_map) == 40 && sizeof(struct iommu_ioas_copy) == 40, "user ABI");
static_assert(sizeof(struct iommu_ioas_unmap) == 24 && sizeof(struct iommu_option) == 24, "user ABI");
static_assert(sizeof(struct iommu_hwpt_alloc) == 48, "user ABI");
