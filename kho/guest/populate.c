/* First contact with what the previous kernel handed over (setup_arch, before anything is allocated).
 *
 * Memory may only be taken from scratch as long as nobody knows what was preserved. So the first thing is to learn
 * where scratch is. All is checked before the first region is given to memblock; if anything is wrong the kernel boots
 * as if cold, and what was handed over is lost, with a message.
 */
#define pr_fmt(fmt) "KHO: " fmt
#include "kho_internal.h"
#include "arch.h"
#include "errno.h"
#include "memblock.h"
#include "printk.h"
#include "sdt.h"

/* memblock does not know memory yet: RAM is what the memory map says. */
static bool is_ram(u64 base, u64 size)
{
	u64 at = base, end = base + size;
	bool found = true;

	if (end <= base)
		return false;
	while (at < end && found) {
		found = false;
		for (unsigned int i = 0; i < e820_count && !found; i++) {
			const struct e820_entry *e = &e820_table[i];

			if (e->type == E820_RAM && at >= e->addr && at - e->addr < e->size) {
				at = e->addr + e->size;
				found = true;
			}
		}
	}
	return found;
}

/* The FDT, if it is acceptable. */
static const void *map_fdt(phys_addr_t fdt_phys, u64 fdt_len)
{
	const void *fdt = NULL;
	u64 map;
	int err;

	if (IS_ALIGNED(fdt_phys, PAGE_SIZE) && fdt_phys && is_ram(fdt_phys, fdt_len)) {
		fdt_len = min(fdt_len, (u64)FDT_SIZE_MAX);
		fdt = early_map(fdt_phys, fdt_len);
	}
	if (!fdt) {
		pr_warn("setup: failed to memremap FDT (0x%llx)\n", (unsigned long long)fdt_phys);
		return NULL;
	}
	err = fdt_check(fdt, fdt_len);
	if (err) {
		pr_warn("setup: handover FDT (0x%llx) is invalid: %d\n", (unsigned long long)fdt_phys, err);
		return NULL;
	}
	err = fdt_node_compatible(fdt, FDT_ROOT, KHO_FDT_COMPATIBLE);
	if (err) {
		pr_warn("setup: handover FDT (0x%llx) is incompatible with '%s': %d\n",
			(unsigned long long)fdt_phys, KHO_FDT_COMPATIBLE, err);
		return NULL;
	}
	err = fdt_getprop_u64(fdt, FDT_ROOT, KHO_FDT_MEMORY_MAP_PROP_NAME, &map);
	if (err || !map) {
		pr_err("failed to get preserved memory map\n");
		return NULL;
	}
	return fdt;
}

/* Areas as this kernel can use them: aligned, in RAM, disjoint. */
static bool areas_ok(const struct kho_scratch *areas, u64 n)
{
	for (u64 i = 0; i < n; i++) {
		u64 addr = areas[i].addr, size = areas[i].size;

		if (!IS_ALIGNED(addr | size, KHO_SCRATCH_ALIGN) || (size && !is_ram(addr, size))) {
			pr_warn("failed to mark the scratch region 0x%llx+0x%llx: %d\n", (unsigned long long)addr,
				(unsigned long long)size, -EINVAL);
			return false;
		}
		for (u64 k = 0; k < i; k++)
			if (addr < areas[k].addr + areas[k].size && areas[k].addr < addr + size) {
				pr_warn("failed to mark the scratch region 0x%llx+0x%llx: %d\n",
					(unsigned long long)addr, (unsigned long long)size, -EEXIST);
				return false;
			}
	}
	return true;
}

static bool inside(const struct kho_scratch *areas, u64 n, phys_addr_t phys, u64 size)
{
	for (u64 i = 0; i < n; i++)
		if (phys >= areas[i].addr && phys - areas[i].addr < areas[i].size &&
		    size <= areas[i].size - (phys - areas[i].addr))
			return true;
	return false;
}

/* The scratch array, if it is acceptable. */
static const struct kho_scratch *map_scratch(phys_addr_t scratch_phys, u64 scratch_len)
{
	const struct kho_scratch *areas = NULL;
	u64 n = scratch_len / sizeof(*areas);

	if (n && n <= KHO_SCRATCH_MAX && IS_ALIGNED(scratch_phys, sizeof(u64)) && scratch_phys &&
	    is_ram(scratch_phys, scratch_len))
		areas = early_map(scratch_phys, scratch_len);
	if (!areas) {
		pr_warn("setup: failed to memremap scratch (phys=0x%llx, len=%llu)\n",
			(unsigned long long)scratch_phys, (unsigned long long)scratch_len);
		return NULL;
	}
	return areas_ok(areas, n) ? areas : NULL;
}

static int mark_areas(const struct kho_scratch *areas, u64 n)
{
	for (u64 i = 0; i < n; i++) {
		int err = areas[i].size ? memblock_add(areas[i].addr, areas[i].size) : 0;

		if (!err && areas[i].size)
			err = memblock_mark_kho_scratch(areas[i].addr, areas[i].size);
		if (err) {
			pr_warn("failed to mark the scratch region 0x%llx+0x%llx: %d\n",
				(unsigned long long)areas[i].addr, (unsigned long long)areas[i].size, err);
			while (i--)
				memblock_clear_kho_scratch(areas[i].addr, areas[i].size);
			return err;
		}
	}
	return 0;
}

void kho_populate(phys_addr_t fdt_phys, u64 fdt_len, phys_addr_t scratch_phys, u64 scratch_len)
{
	const struct kho_scratch *areas;
	u64 n = scratch_len / sizeof(*areas);

	PROBE(kho, populate);
	if (kho_in.fdt) {
		pr_warn("setup: more than one handover, the first one counts\n");
		return;
	}
	if (!map_fdt(fdt_phys, fdt_len))
		goto cold;
	areas = map_scratch(scratch_phys, scratch_len);
	if (!areas)
		goto cold;
	if (inside(areas, n, fdt_phys, 1) || !inside(areas, n, scratch_phys, scratch_len)) {
		pr_warn("setup: handover FDT in scratch, or scratch array outside of it\n");
		goto cold;
	}
	if (mark_areas(areas, n))
		goto cold;
	if (memblock_reserve(scratch_phys, scratch_len)) {
		for (u64 i = 0; i < n; i++)
			memblock_clear_kho_scratch(areas[i].addr, areas[i].size);
		goto cold;
	}
	memblock_set_kho_scratch_only();
	kho_in.fdt = fdt_phys;
	kho_in.scratch = scratch_phys;
	kho_in.scratch_len = scratch_len;
	kho_scratch = phys_to_virt(scratch_phys);
	kho_scratch_cnt = (unsigned int)n;
	pr_info("found kexec handover data.\n");
	return;

cold:
	pr_warn("disabling KHO revival\n");
}
