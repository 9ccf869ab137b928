/* memblock, the page allocator and the slab allocator in a process: their sources, and what they need of the kernel.
 *
 * "Physical memory" is anonymous memory at PAGE_OFFSET, the array of struct pages is anonymous memory too (so there is
 * nothing for vmemmap.c to do). panic() ends the call that led to it, host_try() says how it ended.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../kernels/mm/memblock.c"
#include "../../kernels/mm/memblock_alloc.c"
#include "../../kernels/mm/memblock_noinit.c"
#include "../../kernels/mm/memblock_query.c"
#include "../../kernels/mm/page_alloc.c"
#include "../../kernels/mm/page_init.c"
#include "../../kernels/mm/show_mem.c"
#include "../../kernels/mm/folio.c"
#include "../../kernels/mm/slab.c"
#include "arch.h"

#define RAM_MAX		(80UL << 30)
#define ARCH_SET_GS	0x1001

u64 max_pfn;
phys_addr_t kernel_phys;

static struct percpu cpu = { .self = &cpu };
static jmp_buf escape;
static char message[256];
static unsigned int warnings;
static u64 initial_max = INIT_REGIONS;

/* ---- the rest of the kernel ---- */

void panic(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(message, sizeof(message), fmt, args);
	va_end(args);
	longjmp(escape, 1);
}

void warn_at(const char *file, int line, const char *what)
{
	(void)file, (void)line, (void)what;
	warnings++;
}

int printk(const char *fmt, ...)
{
	(void)fmt;
	return 0;
}

int kstrtobool(const char *s, bool *out)
{
	*out = *s == '1';
	return 0;
}

u64 spin_lock_irqsave(spinlock_t *l)
{
	(void)l;
	return 0;
}

void spin_unlock_irqrestore(spinlock_t *l, u64 flags)
{
	(void)l, (void)flags;
}

void vmemmap_refill(void) {}

bool pfn_valid(u64 pfn)
{
	return pfn < max_pfn && memblock_is_memory(PFN_PHYS(pfn));
}

phys_addr_t virt_to_phys(const volatile void *p)
{
	if ((u64)p - PAGE_OFFSET >= RAM_MAX)
		panic("BUG: virt_to_phys() of an address outside the direct map");
	return (u64)p - PAGE_OFFSET;
}

/* ---- what the tests call ---- */

static int map(u64 at, u64 size)
{
	void *p = mmap((void *)at, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	return p == (void *)at ? 0 : -1;
}

int host_init(void)
{
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, &cpu))
		return -1;
	return map(PAGE_OFFSET, RAM_MAX) || map(VMEMMAP_BASE, (RAM_MAX >> PAGE_SHIFT) * sizeof(struct page));
}

/* Everything as at the start, with room for `regions` regions in each array. */
void host_reset(u64 regions)
{
	syscall(SYS_arch_prctl, ARCH_SET_GS, &cpu);	/* this thread may be another one, or another library's */
	initial_max = regions;
	memblock = (struct memblock){
		.memory = { .max = regions, .regions = memory_regions, .name = "memory" },
		.reserved = { .max = regions, .regions = reserved_regions, .name = "reserved" },
		.current_limit = ~0UL,
	};
	madvise((void *)PAGE_OFFSET, RAM_MAX, MADV_DONTNEED);
	madvise((void *)VMEMMAP_BASE, (RAM_MAX >> PAGE_SHIFT) * sizeof(struct page), MADV_DONTNEED);
	for (int i = 0; i < ZONES; i++)
		zones[i] = (struct zone){ .name = zones[i].name };
	memset(caches, 0, sizeof(caches));
	nr_caches = 0;
	spare_slabs = NULL;
	lock_owner = NULL;
	mm_junk = true;
	warnings = 0;
	message[0] = 0;
}

/* From memblock to kmalloc(). */
void host_start(void)
{
	max_pfn = PFN_DOWN(memblock_end_of_dram());
	page_alloc_init();
	memblock_free_all();
	kmem_cache_init();
}

/* Calls fn; false if it panicked. */
bool host_try(u64 (*fn)(u64, u64, u64, u64), const u64 args[4], u64 *result)
{
	message[0] = 0;
	if (setjmp(escape))
		return false;
	*result = fn(args[0], args[1], args[2], args[3]);
	return true;
}

const char *host_message(void)
{
	return message;
}

unsigned int host_warnings(void)
{
	return warnings;
}

struct memblock *host_memblock(void)
{
	return &memblock;
}

u64 host_page(u64 pfn)
{
	return (u64)pfn_to_page(pfn);
}

u64 host_pfn(u64 page)
{
	return page_to_pfn((struct page *)page);
}

u64 host_deferred_pages(void)
{
	return zones[ZONE_DMA32].deferred_pages + zones[ZONE_NORMAL].deferred_pages;
}

/* flags, refcount, order, private of a page. */
void host_read_page(u64 pfn, u64 out[4])
{
	const struct page *page = pfn_to_page(pfn);

	out[0] = page->flags;
	out[1] = (u64)page->refcount;
	out[2] = page->order;
	out[3] = page->private;
}
