/* What KHO's code needs of the rest of the kernel, in a process.
 *
 * Physical memory is a file that the test keeps (so it outlives a "kernel", an instance of this library), mapped at
 * PAGE_OFFSET. Pages are allocated one after the other from where the test says, outside of what is reserved, and
 * filled with junk; every allocation is counted, and one of them can be made to fail. memblock and folios are the
 * kernel's own.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arch.h"
#include "init.h"
#include "internal.h"
#include "kexec.h"
#include "kho.h"
#include "kho_internal.h"
#include "block.h"
#include "memblock.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "test_kho.h"

#define AREAS_MAX	64
#define LOG_MAX		262144

struct boot_info boot_info;
struct e820_entry e820_table[E820_MAX];
unsigned int e820_count;
u64 max_pfn;
char boot_command_line[COMMAND_LINE_SIZE];

static int ram_fd;
static u64 ram_size;
static u64 next_pfn, end_pfn;		/* pages to allocate */
static long fail_after = -1;		/* allocations until one fails; negative: never */
static long outstanding;
static s64 managed;
static char log_text[LOG_MAX];
static size_t log_used;
static u64 warnings;
static u64 vmalloc_at = VMALLOC_BASE;
static struct vm_struct *areas[AREAS_MAX];

/* ---- files for people ---- */

void kho_debugfs_init(void) { }
void kho_debugfs_add(const char *name, const void *mem, u64 size) { (void)name; (void)mem; (void)size; }
void kho_debugfs_remove(const void *mem) { (void)mem; }

/* ---- messages ---- */

static void add_log(const char *fmt, va_list args)
{
	int n = vsnprintf(log_text + log_used, sizeof(log_text) - log_used, fmt, args);

	if (n > 0 && log_used + (size_t)n < sizeof(log_text))
		log_used += (size_t)n;
}

int printk(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	add_log(fmt[0] == 1 ? fmt + 2 : fmt, args);
	va_end(args);
	return 0;
}

void panic(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	abort();
}

void warn_at(const char *file, int line, const char *what)
{
	printk("WARNING: %s at %s:%d\n", what, file, line);
	warnings++;
}

/* ---- locks: one thread, so a lock that is held is a deadlock ---- */

void mutex_lock(struct mutex *m)
{
	if (m->owner)
		panic("deadlock");
	m->owner = (struct thread *)m;
}

void mutex_unlock(struct mutex *m) { m->owner = NULL; }

/* ---- addresses ---- */

phys_addr_t virt_to_phys(const volatile void *p)
{
	u64 phys = (u64)p - PAGE_OFFSET;

	if (phys >= ram_size)
		panic("virt_to_phys(%p)", (void *)p);
	return phys;
}

void *early_map(phys_addr_t phys, u64 size)
{
	if (phys + size > ram_size)
		panic("early_map(%#lx, %#lx)", phys, size);
	return phys_to_virt(phys);
}

bool pfn_valid(u64 pfn) { return memblock_is_memory(PFN_PHYS(pfn)); }

/* ---- pages ---- */

static bool fails(void) { return fail_after >= 0 && fail_after-- == 0; }

struct page *alloc_pages(gfp_t gfp, unsigned int order)
{
	u64 pfn = ALIGN_UP(next_pfn, 1UL << order);
	struct page *page = pfn_to_page(pfn);

	while (memblock_is_region_reserved(PFN_PHYS(pfn), PAGE_SIZE << order))
		pfn += 1UL << order;
	page = pfn_to_page(pfn);
	if (fails() || order > MAX_PAGE_ORDER || pfn + (1UL << order) > end_pfn)
		return NULL;
	next_pfn = pfn + (1UL << order);
	memset(page_address(page), gfp & __GFP_ZERO ? 0 : 0xcc, PAGE_SIZE << order);
	page->refcount = 1;
	page->order = (u8)order;
	if (gfp & __GFP_COMP)
		prep_compound_page(page, order);
	outstanding++;
	return page;
}

void *get_free_pages(gfp_t gfp, unsigned int order)
{
	struct page *page = alloc_pages(gfp, order);

	return page ? page_address(page) : NULL;
}

void free_block(struct page *page, unsigned int order)
{
	memset(page_address(page), 0xdd, PAGE_SIZE << order);
	for (u64 i = 0; i < 1UL << order; i++)
		page[i] = (struct page){};
	outstanding--;
}

void bad_page(const struct page *page, const char *what)
{
	panic("page %#lx: %s", page_to_pfn(page), what);
}

void adjust_managed_page_count(struct page *page, s64 count)
{
	(void)page;
	managed += count;
}

void set_pageblock_migratetype(u64 pfn, enum migratetype type)
{
	printk("pageblock %#lx type %d\n", pfn, type);
}

void free_pages_core(u64 pfn, unsigned int order)
{
	(void)pfn;
	managed += 1L << order;
}

void *kmalloc(u64 size, gfp_t gfp)
{
	void *p = fails() ? NULL : malloc(size);

	(void)gfp;
	outstanding += !!p;
	return p ? memset(p, 0xcc, size) : NULL;
}

void kfree(const void *p)
{
	outstanding -= !!p;
	free((void *)p);
}

/* ---- vmalloc: the pages' parts of the memory file, mapped side by side ---- */

bool is_vmalloc_addr(const void *p) { return (u64)p >= VMALLOC_BASE && (u64)p < VMALLOC_BASE + VMALLOC_SIZE; }

struct vm_struct *find_vm_area(const void *p)
{
	for (int i = 0; i < AREAS_MAX; i++)
		if (areas[i] && (u64)p >= areas[i]->addr && (u64)p < areas[i]->addr + areas[i]->size)
			return areas[i];
	return NULL;
}

void *vmap_pages(struct page **pages, u64 nr_pages, u32 flags, u32 page_order, u64 align)
{
	struct vm_struct *area = malloc(sizeof(*area));
	int slot = 0;

	while (slot < AREAS_MAX - 1 && areas[slot])
		slot++;
	if (fails() || areas[slot])
		return NULL;
	vmalloc_at = ALIGN_UP(vmalloc_at, align);
	*area = (struct vm_struct){ .addr = vmalloc_at, .size = nr_pages << PAGE_SHIFT, .flags = flags,
				    .page_order = page_order, .nr_pages = nr_pages, .pages = pages };
	for (u64 i = 0; i < nr_pages; i++)
		if (mmap((void *)(area->addr + i * PAGE_SIZE), PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, ram_fd, (off_t)page_to_phys(pages[i])) == MAP_FAILED)
			panic("mmap");
	vmalloc_at += area->size + PAGE_SIZE;
	areas[slot] = area;
	outstanding++;
	return (void *)area->addr;
}

static void *alloc_area(u64 size, u32 flags, u32 order)
{
	u64 nr_pages = ALIGN_UP(size, PAGE_SIZE << order) >> PAGE_SHIFT;
	struct page **pages = kmalloc(nr_pages * sizeof(*pages), GFP_KERNEL);

	for (u64 n = 0; n < nr_pages;) {
		struct page *block = alloc_pages(GFP_KERNEL, order);

		if (!block)
			panic("the test has no memory for a vmalloc area");
		for (u64 i = 0; i < 1UL << order; i++) {
			block[i].refcount = 1;
			block[i].order = 0;
			pages[n++] = block + i;
		}
		outstanding += (1L << order) - 1;
	}
	return vmap_pages(pages, nr_pages, flags, order, PAGE_SIZE << order);
}

void *vmalloc(u64 size) { return alloc_area(size, VM_ALLOC, 0); }

void vfree(const void *p)
{
	struct vm_struct *area = find_vm_area(p);

	for (u64 i = 0; i < area->nr_pages; i++)
		__free_pages(area->pages[i], 0);
	if (is_vmalloc_addr(area->pages))
		vfree(area->pages);
	else
		kfree(area->pages);
	for (int i = 0; i < AREAS_MAX; i++)
		if (areas[i] == area)
			areas[i] = NULL;
	munmap((void *)area->addr, area->size);
	free(area);
	outstanding--;
}

/* ---- kexec ---- */

int kexec_add_buffer(struct kexec_buf *kbuf)
{
	struct kimage *image = kbuf->image;
	int err = kho_locate_mem_hole(kbuf);

	if (err)
		return err;
	image->segment[image->nr_segments++] = (struct kexec_segment){
		.buf = kbuf->buffer, .bufsz = kbuf->bufsz, .mem = kbuf->mem, .memsz = kbuf->memsz,
	};
	return 0;
}

int kexec_locate_hole(struct kexec_buf *kbuf, phys_addr_t start, phys_addr_t end)
{
	if (end - start < kbuf->memsz)
		return -EADDRNOTAVAIL;
	kbuf->mem = ALIGN_DOWN(end - kbuf->memsz, kbuf->buf_align);
	return 0;
}

const struct kho_scratch *test_scratch_break(void) { return kho_scratch; }

/* ---- driven by the test ---- */

/* ranges of RAM inside the file; the kernel allocates in [first, last). */
int host_start(int fd, u64 size, const u64 *ranges, unsigned int n, u64 first, u64 last)
{
	int fixed = MAP_FIXED | MAP_NORESERVE;

	ram_fd = fd;
	ram_size = size;
	next_pfn = PFN_UP(first);
	end_pfn = PFN_DOWN(last);
	max_pfn = PFN_DOWN(size);
	for (unsigned int i = 0; i < n; i++)
		e820_table[e820_count++] = (struct e820_entry){ ranges[2 * i], ranges[2 * i + 1], E820_RAM };
	return mmap((void *)PAGE_OFFSET, size, PROT_READ | PROT_WRITE, MAP_SHARED | fixed, fd, 0) == MAP_FAILED ||
	       mmap((void *)VMEMMAP_BASE, max_pfn * sizeof(struct page), PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | fixed, -1, 0) == MAP_FAILED;
}

/* After kho_populate(), as setup_arch() does. */
void host_memory_known(void)
{
	memblock_reserve(0, MIB);
	for (unsigned int i = 0; i < e820_count; i++)
		memblock_add(e820_table[i].addr, e820_table[i].size);
	memblock.may_resize = true;
	memblock.current_limit = memblock_end_of_dram();
}

void host_memory_given(void)
{
	memblock_clear_kho_scratch_only();
	memblock.done = true;
}

extern const struct kernel_param __start_param[], __stop_param[];
extern const struct initcall __start_initcall[], __stop_initcall[];

int host_param(const char *name, const char *value)
{
	for (const struct kernel_param *p = __start_param; p < __stop_param; p++)
		if (!strcmp(p->name, name))
			return p->handler(value);
	return 1;
}

int host_initcall(const char *name)
{
	for (const struct initcall *c = __start_initcall; c < __stop_initcall; c++)
		if (!strcmp(c->name, name))
			return c->fn();
	return 1;
}

void host_fail_after(long n) { fail_after = n; }
long host_outstanding(void) { return outstanding; }
s64 host_managed(void) { return managed; }
u64 host_warnings(void) { return warnings; }
const char *host_log(void) { return log_text; }
void *host_vmalloc_huge(u64 size, u32 order) { return alloc_area(size, VM_ALLOC | VM_ALLOW_HUGE_VMAP, order); }
void *host_vmap(u64 size) { return alloc_area(size, VM_MAP, 0); }
u64 host_alloc(unsigned int order)
{
	struct page *page = alloc_pages(__GFP_COMP, order);

	return page ? page_to_phys(page) : 0;
}
u64 host_alloc_pages(unsigned int order)
{
	struct page *page = alloc_pages(0, order);

	return page ? page_to_phys(page) : 0;
}
int host_preserve_folio(u64 phys) { return kho_preserve_folio(page_folio(phys_to_page(phys))); }
void host_unpreserve_folio(u64 phys) { kho_unpreserve_folio(page_folio(phys_to_page(phys))); }
int host_preserve_pages(u64 phys, u64 n) { return kho_preserve_pages(phys_to_page(phys), n); }
void host_unpreserve_pages(u64 phys, u64 n) { kho_unpreserve_pages(phys_to_page(phys), n); }
int host_restore_folio(u64 phys)
{
	struct folio *folio = kho_restore_folio(phys);

	return folio ? (int)folio_order(folio) : -1;
}
void host_put(u64 phys) { put_page(phys_to_page(phys)); }
void host_page(u64 pfn, u64 *out)
{
	const struct page *page = pfn_to_page(pfn);

	out[0] = page->flags;
	out[1] = (u64)(s64)page->refcount;
	out[2] = page->private;
	out[3] = page->order;
}
void host_private(u64 *out, u64 n)
{
	for (u64 pfn = 0; pfn < n; pfn++)
		out[pfn] = pfn_to_page(pfn)->private;
}
u64 host_regions(const struct memblock_region **regions, bool reserved)
{
	*regions = reserved ? memblock.reserved.regions : memblock.memory.regions;
	return reserved ? memblock.reserved.cnt : memblock.memory.cnt;
}
u64 host_root_fdt(void) { return kho_out.fdt ? virt_to_phys(kho_out.fdt) : 0; }
u64 host_tree_root(void) { return kho_out.tree.root ? virt_to_phys(kho_out.tree.root) : 0; }
bool host_scratch(unsigned int i, u64 *out)
{
	if (i >= kho_scratch_cnt)
		return false;
	out[0] = kho_scratch[i].addr;
	out[1] = kho_scratch[i].size;
	return true;
}
int host_radix_add(u64 pfn, unsigned int order) { return kho_radix_add(&kho_out.tree, pfn, order); }
void host_radix_del(u64 pfn, unsigned int order) { kho_radix_del(&kho_out.tree, pfn, order); }
u64 host_sizeof_set(void) { return sizeof(struct kho_block_set); }
u64 host_set_head(const struct kho_block_set *set) { return set->head; }
u64 host_set_blocks(const struct kho_block_set *set) { return set->nr_blocks; }
u64 host_fill_kimage(u64 *out)
{
	static struct kimage image;
	int err = kho_fill_kimage(&image);

	out[0] = image.fdt;
	out[1] = image.scratch ? image.scratch->mem : 0;
	out[2] = image.scratch ? image.scratch->bufsz : 0;
	out[3] = image.scratch ? image.scratch->memsz : 0;
	return (u64)(s64)err;
}
