/* What the handlers of devices' files share with the drivers beneath them. */
#pragma once
#include "../../kernels/include/types.h"
#include "abi_devices.h"

struct iommu_domain;
struct iommufd;
struct pci_dev;

/* ---- luo_iommu.c: the FLB iommu-luemu-v1 ---- */
extern struct liveupdate_flb iommu_flb;
/* The record of an iommufd is to be handed over, and is not any more. -ENOSPC, -ENOENT (no FLB). */
int iommu_luo_add_file(u64 record);
void iommu_luo_remove_file(u64 record);
/* Writes down which domains and functions go over. At freeze. 0, -ENOSPC, -EINVAL. */
int iommu_luo_freeze(void);
void iommu_luo_unfreeze(void);
bool iommu_luo_frozen(void);

/* ---- luo_memfd.c ---- */
u64 memfd_luo_unpreserved(void);		/* how many memfds were, so far: changes when one does */

/* ---- luo_flb.c ---- */
/* The record of an FLB, long before LUO starts, if the previous kernel left one and it is a preserved page. */
bool luo_flb_peek(const char *compatible, u64 *data);

/* ---- luo_iommufd_check.c ---- */
struct iommufd_luemu_object *iommufd_luemu_objects(const struct iommufd_luemu_ser *s);
struct iommufd_luemu_area *iommufd_luemu_areas(const struct iommufd_luemu_ser *s);
struct iommufd_luemu_extent *iommufd_luemu_extents(const struct iommufd_luemu_ser *s);
struct iommufd_luemu_range *iommufd_luemu_ranges(const struct iommufd_luemu_ser *s);
/* Whether a record of at most `room` bytes makes sense by itself: NULL, or what is wrong with it. */
const char *iommufd_luemu_check(const struct iommufd_luemu_ser *s, u64 room);

/* ---- luo_pci.c: the FLB pci-luemu-v1 ---- */
extern struct liveupdate_flb pci_flb;
int pci_luo_freeze(void);		/* writes down what goes over: 0, -ENOSPC */
void pci_luo_unfreeze(void);
bool pci_luo_refused(void);
void pci_luo_finish(struct pci_dev *dev);	/* an incoming function is like any other from now on */

/* ---- drivers/vtd_adopt.c ---- */
/* A record that was found good before any memory was given out. */
bool iommu_adopted_file(u64 record);

/* ---- drivers/iommu.c ---- */
struct iommu_domain *iommu_domain_of(struct pci_dev *dev);	/* also of one whose context was handed over */
void iommu_domain_finish(struct iommu_domain *d);		/* an adopted one is like any other from now on */
