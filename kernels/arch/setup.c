/* What the boot loader handed over, and the memory map: from boot_params or PVH's start info to a filled memblock and a
 * direct map of all RAM.
 *
 * Sources: the Linux x86 boot protocol (zero page, setup_data), Xen's PVH direct boot ABI (hvm_start_info version 1).
 * The order is that of Linux: KHO learns of scratch before anything is allocated (parse_setup_data), parameters are
 * parsed after that, and only then memblock hears of RAM.
 */
#define pr_fmt(fmt) "x86: " fmt
#include "arch.h"
#include "bootmem.h"
#include "cpu.h"
#include "init.h"
#include "kho.h"
#include "memblock.h"
#include "page.h"
#include "panic.h"
#include "printk.h"
#include "sdt.h"
#include "string.h"

#define CMDLINE_SIZE		2048
#define LOW_MEMORY_END		0x100000	/* the first MiB belongs to firmware: never allocated */
#define SETUP_DATA_MAX		64		/* entries followed before the chain is taken for a loop */
#define SETUP_DATA_LEN_MAX	(1UL << 20)

/* Offsets in boot_params. */
#define BP_ACPI_RSDP	0x070
#define BP_EXT_RAMDISK	0x0c0
#define BP_EXT_SIZE	0x0c4
#define BP_EXT_CMDLINE	0x0c8
#define BP_E820_COUNT	0x1e8
#define BP_RAMDISK	0x218
#define BP_SIZE		0x21c
#define BP_CMDLINE	0x228
#define BP_SETUP_DATA	0x250
#define BP_E820		0x2d0
#define BP_E820_MAX	128

#define PVH_MAGIC	0x336ec578
struct pvh_start_info {
	u32 magic, version, flags, nr_modules;
	u64 modules, cmdline, rsdp;
	u64 memmap;
	u32 memmap_entries, reserved;
};
struct pvh_module {
	u64 addr, size, cmdline, reserved;
};
struct pvh_memmap_entry {
	u64 addr, size;
	u32 type, reserved;
};
static_assert(sizeof(struct pvh_start_info) == 56, "hvm_start_info version 1");
static_assert(sizeof(struct pvh_memmap_entry) == 24, "hvm_memmap_table_entry");

struct boot_info boot_info;
struct e820_entry e820_table[E820_MAX];
unsigned int e820_count;
char boot_command_line[CMDLINE_SIZE];

static void add_e820(u64 addr, u64 size, u32 type)
{
	if (!size || addr + size < addr)
		return;
	if (e820_count == E820_MAX) {
		pr_warn("memory map has more than %d entries, the rest is ignored\n", E820_MAX);
		return;
	}
	e820_table[e820_count++] = (struct e820_entry){ .addr = addr, .size = size, .type = type };
}

static void read_boot_params(const u8 *bp)
{
	unsigned int n = min((unsigned int)bp[BP_E820_COUNT], (unsigned int)BP_E820_MAX);

	boot_info.rsdp = get_unaligned_u64(bp + BP_ACPI_RSDP);
	boot_info.initrd = get_unaligned_u32(bp + BP_RAMDISK) | (u64)get_unaligned_u32(bp + BP_EXT_RAMDISK) << 32;
	boot_info.initrd_size = get_unaligned_u32(bp + BP_SIZE) | (u64)get_unaligned_u32(bp + BP_EXT_SIZE) << 32;
	boot_info.cmdline = get_unaligned_u32(bp + BP_CMDLINE) | (u64)get_unaligned_u32(bp + BP_EXT_CMDLINE) << 32;
	boot_info.setup_data = get_unaligned_u64(bp + BP_SETUP_DATA);
	for (unsigned int i = 0; i < n; i++) {
		const u8 *e = bp + BP_E820 + i * sizeof(struct e820_entry);

		add_e820(get_unaligned_u64(e), get_unaligned_u64(e + 8), get_unaligned_u32(e + 16));
	}
}

static void read_start_info(const struct pvh_start_info *info)
{
	const struct pvh_memmap_entry *map;

	if (info->magic != PVH_MAGIC)
		panic("entered by the PVH entry, but there is no start info");
	if (info->version < 1 || !info->memmap_entries)
		panic("PVH start info version %u has no memory map; version 1 is needed", info->version);
	boot_info.rsdp = info->rsdp;
	boot_info.cmdline = info->cmdline;
	if (info->nr_modules) {
		const struct pvh_module *m = early_map(info->modules, sizeof(*m));

		if (m) {
			boot_info.initrd = m->addr;
			boot_info.initrd_size = m->size;
		}
	}
	map = early_map(info->memmap, (u64)info->memmap_entries * sizeof(*map));
	for (u32 i = 0; map && i < info->memmap_entries; i++)
		add_e820(map[i].addr, map[i].size, map[i].type);
}

static void copy_command_line(void)
{
	const char *text = boot_info.cmdline ? early_map(boot_info.cmdline, CMDLINE_SIZE) : NULL;

	if (text && strscpy(boot_command_line, text, sizeof(boot_command_line)) < 0)
		pr_warn("command line cut to %d bytes\n", CMDLINE_SIZE - 1);
}

static void print_e820(void)
{
	static const char *const names[] = { "type 0", "usable", "reserved", "ACPI data", "ACPI NVS" };

	pr_info("memory map provided by %s:\n", boot_info.pvh ? "PVH start info" : "boot_params");
	for (unsigned int i = 0; i < e820_count; i++) {
		const struct e820_entry *e = &e820_table[i];

		pr_info("[mem 0x%016llx-0x%016llx] %s\n", (unsigned long long)e->addr,
			(unsigned long long)(e->addr + e->size - 1),
			e->type < ARRAY_SIZE(names) ? names[e->type] : "unknown");
	}
}

/* The chain of setup_data: entries are reserved, so that they stay valid, and KHO's is acted upon. */
static void parse_setup_data(void)
{
	phys_addr_t at = boot_info.setup_data;

	for (unsigned int i = 0; at; i++) {
		const struct setup_data *entry = early_map(at, sizeof(*entry));

		if (!entry || entry->len > SETUP_DATA_LEN_MAX || i == SETUP_DATA_MAX) {
			pr_err("setup_data is malformed at %#llx, the rest of it is ignored\n", (unsigned long long)at);
			return;
		}
		memblock_reserve(at, sizeof(*entry) + entry->len);
		if (entry->type == SETUP_KEXEC_KHO) {
			const struct kho_data *kho = early_map(at + sizeof(*entry), sizeof(*kho));

			if (entry->len < sizeof(*kho) || !kho)
				pr_warn("setup_data of KHO has %u bytes instead of %zu, ignored\n", entry->len, sizeof(*kho));
			else
				kho_populate(kho->fdt_addr, kho->fdt_size, kho->scratch_addr, kho->scratch_size);
		}
		at = entry->next;
	}
}

/* RAM into memblock, whole pages only. What firmware lists as anything else is taken out again where entries overlap. */
static void fill_memblock(void)
{
	for (unsigned int i = 0; i < e820_count; i++) {
		const struct e820_entry *e = &e820_table[i];
		u64 start = ALIGN_UP(e->addr, PAGE_SIZE), end = ALIGN_DOWN(e->addr + e->size, PAGE_SIZE);

		if (e->type == E820_RAM && start < end)
			memblock_add(start, end - start);
	}
	for (unsigned int i = 0; i < e820_count; i++) {
		const struct e820_entry *e = &e820_table[i];
		u64 start = ALIGN_DOWN(e->addr, PAGE_SIZE), end = ALIGN_UP(e->addr + e->size, PAGE_SIZE);

		if (e->type != E820_RAM)
			memblock_remove(start, end - start);
	}
	if (!memblock_phys_mem_size())
		panic("the memory map has no RAM");
	max_pfn = PFN_DOWN(memblock_end_of_dram());
}

static phys_addr_t table_from_memblock(void)
{
	phys_addr_t phys = memblock_phys_alloc_range(PAGE_SIZE, PAGE_SIZE, 0, 0);
	void *table = phys ? early_map(phys, PAGE_SIZE) : NULL;

	if (!table)
		panic("no memory for the page tables of the direct map");
	memset(table, 0, PAGE_SIZE);
	return phys;
}

static void map_range(phys_addr_t start, phys_addr_t end)
{
	for (phys_addr_t p = ALIGN_DOWN(start, PMD_SIZE); p < end; p += PMD_SIZE)
		direct_map_2m(p, table_from_memblock);
}

/* The image in 4 KiB pages: text executable, constants read-only, data neither executable nor shared with text. */
static void map_image(u64 *pgd)
{
	u64 virt = (u64)_text, *pdpt, *pd;
	phys_addr_t phys = kernel_phys;

	pgd[511] = table_from_memblock() | PTE_P | PTE_W;
	pdpt = phys_to_virt(pgd[511] & PTE_ADDR);
	pdpt[virt >> 30 & 511] = table_from_memblock() | PTE_P | PTE_W;
	pd = phys_to_virt(pdpt[virt >> 30 & 511] & PTE_ADDR);
	for (; virt < (u64)_end; virt += PAGE_SIZE, phys += PAGE_SIZE) {
		u64 *pde = &pd[virt >> 21 & 511], *pt;

		if (!*pde)
			*pde = table_from_memblock() | PTE_P | PTE_W;
		pt = phys_to_virt(*pde & PTE_ADDR);
		pt[virt >> 12 & 511] = phys | (virt < (u64)_etext ? PROT_KERNEL_RX :
					       virt < (u64)_erodata ? PROT_KERNEL_RO : PROT_KERNEL);
	}
}

/* A complete direct map (2 MiB pages, not executable) and the final mapping of the image, in new top tables: the 1:1
 * mapping of the start is gone. */
static void init_mem_mapping(void)
{
	extern u64 early_pgd[512];
	phys_addr_t root;
	u64 *pgd;

	map_range(0, LOW_MEMORY_END);
	for (u64 i = 0; i < memblock.memory.cnt; i++) {
		const struct memblock_region *r = &memblock.memory.regions[i];

		map_range(r->base, r->base + r->size);
	}
	if (boot_info.initrd_size)
		map_range(boot_info.initrd, boot_info.initrd + boot_info.initrd_size);
	root = table_from_memblock();
	pgd = phys_to_virt(root);
	for (u64 i = 256; i < 511; i++)
		pgd[i] = early_pgd[i];
	map_image(pgd);
	kernel_pgd = pgd;
	write_cr3(root);
}

static void reserve_boot_memory(void)
{
	memblock_reserve(0, LOW_MEMORY_END);
	memblock_reserve_kern(kernel_phys, (u64)(_end - _text));
	if (boot_info.initrd_size)
		memblock_reserve_kern(boot_info.initrd, boot_info.initrd_size);
}

void setup_arch(void)
{
	phys_addr_t parameters = boot_parameters_phys(&boot_info.pvh);

	if (boot_info.pvh) {
		read_start_info(early_map(parameters, sizeof(struct pvh_start_info)));
	} else {
		boot_info.boot_params = parameters;
		read_boot_params(early_map(parameters, PAGE_SIZE));
	}
	copy_command_line();
	pr_info("Command line: %s\n", boot_command_line);
	if (!e820_count)
		panic("the boot loader passed no memory map");
	print_e820();

	reserve_boot_memory();
	parse_setup_data();
	parse_early_params();
	PROBE(boot, memblock_setup);
	fill_memblock();
	init_mem_mapping();
	memblock.may_resize = true;
	memblock.current_limit = memblock_end_of_dram();
}
