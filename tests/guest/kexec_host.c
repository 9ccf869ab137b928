/* What kernel/kexec.c, kernel/kexec_file.c and arch/machine_kexec.c need of the rest of the kernel, in a process.
 *
 * "Physical memory" is anonymous memory at PAGE_OFFSET; alloc_page() takes pages from where the test says, one after the
 * other. Every allocation is counted, and one of them can be made to fail.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arch.h"
#include "breakage.h"
#include "kexec.h"
#include "kho.h"
#include "liveupdate.h"
#include "memblock.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "sha256.h"

#define RAM_MAX		(64UL << 30)
#define REGIONS_MAX	16
#define LOG_MAX		65536

struct boot_info boot_info;
struct e820_entry e820_table[E820_MAX];
unsigned int e820_count;
u64 *kernel_pgd;
struct kho_scratch *kho_scratch;
unsigned int kho_scratch_cnt;
static struct memblock_region regions[REGIONS_MAX];
struct memblock memblock = { .memory = { .regions = regions, .max = REGIONS_MAX } };

static struct kho_scratch areas[REGIONS_MAX];
static phys_addr_t kho_fdt;			/* 0: KHO is off */
static struct kimage *current_image;

static phys_addr_t next_page, pages_end;
static long fail_after;				/* allocations until one fails; negative: never */
static long outstanding;
static unsigned long break_segment = -1UL;
static char log_text[LOG_MAX];
static size_t log_used;
static char shutdowns[256];

static bool fails(void)
{
	return fail_after >= 0 && fail_after-- == 0;
}

struct page *alloc_pages(gfp_t gfp, unsigned int order)
{
	struct page *page;

	if (order || (gfp & ~(__GFP_ZERO | __GFP_NOWARN)) || fails() || next_page == pages_end)
		return NULL;
	page = phys_to_page(next_page);
	next_page += PAGE_SIZE;
	memset(page_address(page), 0xcc, PAGE_SIZE);
	page->refcount = 1;
	outstanding++;
	return page;
}

void __free_pages(struct page *page, unsigned int order)
{
	if (order || page->refcount != 1)
		abort();
	page->refcount = 0;
	outstanding--;
}

void *kzalloc(u64 size, gfp_t gfp)
{
	void *p = gfp || fails() ? NULL : calloc(1, size);

	outstanding += !!p;
	return p;
}

void kfree(const void *p)
{
	outstanding -= !!p;
	free((void *)p);
}

phys_addr_t virt_to_phys(const volatile void *p)
{
	return (u64)p - PAGE_OFFSET;
}

phys_addr_t memblock_end_of_dram(void)
{
	const struct memblock_region *r = &regions[memblock.memory.cnt - 1];

	return r->base + r->size;
}

int printk(const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(log_text + log_used, sizeof(log_text) - log_used, fmt[0] == 1 ? fmt + 2 : fmt, args);
	va_end(args);
	if (n > 0 && log_used + (size_t)n < sizeof(log_text))
		log_used += (size_t)n;
	return n;
}

void printk_flush(void) { }
void set_phase(const char *phase) { (void)phase; }
void machine_shutdown(void) { strcat(shutdowns, "machine "); }
void mutex_lock(struct mutex *m) { if (!mutex_trylock(m)) abort(); }
void mutex_unlock(struct mutex *m) { m->owner = NULL; }

bool mutex_trylock(struct mutex *m)
{
	if (m->owner)
		return false;
	m->owner = (struct thread *)m;
	return true;
}

bool breaks(const char *class, u64 *n)
{
	*n = break_segment;
	return !strcmp(class, "digest") && break_segment != -1UL;
}

int kho_locate_mem_hole(struct kexec_buf *kbuf)
{
	if (!kho_fdt)
		return 1;
	for (unsigned int i = 0; i < kho_scratch_cnt; i++) {
		if (!kexec_locate_hole(kbuf, areas[i].addr, areas[i].addr + areas[i].size))
			return 0;
	}
	return -EADDRNOTAVAIL;
}

/* No live update in these tests: nothing is in the way of a kexec. */
int liveupdate_reboot(void)
{
	return 0;
}

bool liveupdate_has_sessions(void)
{
	return false;
}

int kho_fill_kimage(struct kimage *image)
{
	struct kexec_buf kbuf = {
		.image = image, .buffer = areas, .bufsz = kho_scratch_cnt * sizeof(areas[0]),
		.memsz = kho_scratch_cnt * sizeof(areas[0]), .buf_align = 0x10000, .buf_max = -1UL,
	};
	int err;

	current_image = image;
	if (!kho_fdt)
		return 0;
	err = kexec_add_buffer(&kbuf);
	if (err)
		return err;
	image->fdt = kho_fdt;
	image->scratch = &image->segment[image->nr_segments - 1];
	return 0;
}

/* ---- driven by the test ---- */

int host_init(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;

	kernel_pgd = calloc(512, 8);
	for (int i = 0; i < 512; i++)
		kernel_pgd[i] = 0x1000UL * (unsigned long)i | 0x63;
	return mmap((void *)PAGE_OFFSET, RAM_MAX, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED ||
	       mmap((void *)VMEMMAP_BASE, RAM_MAX / PAGE_SIZE * sizeof(struct page), PROT_READ | PROT_WRITE, flags,
		    -1, 0) == MAP_FAILED;
}

void host_set_memory(const u64 *ranges, unsigned int n)
{
	memblock.memory.cnt = e820_count = n;
	for (unsigned int i = 0; i < n; i++) {
		regions[i] = (struct memblock_region){ .base = ranges[2 * i], .size = ranges[2 * i + 1] };
		e820_table[i] = (struct e820_entry){ .addr = regions[i].base, .size = regions[i].size, .type = 1 };
	}
}

void host_set_kho(u64 fdt, const u64 *ranges, unsigned int n)
{
	kho_fdt = fdt;
	kho_scratch_cnt = n;
	for (unsigned int i = 0; i < n; i++)
		areas[i] = (struct kho_scratch){ .addr = ranges[2 * i], .size = ranges[2 * i + 1] };
}

void host_set_pages(u64 start, u64 end) { next_page = start; pages_end = end; }
void host_fail_after(long n) { fail_after = n; }
void host_break(u64 segment) { break_segment = segment; }
void host_set_rsdp(u64 rsdp) { boot_info.rsdp = rsdp; }
long host_outstanding(void) { return outstanding; }
const char *host_log(void) { return log_text; }
void host_clear_log(void) { log_used = 0; log_text[0] = '\0'; }

/* head, start, kernel, fdt, address of the relocation code, of the page tables, number of segments, then place, memory
 * and contents of each. The last image that was begun; it is there only if loading succeeded. */
void host_image(u64 *out)
{
	const struct kimage *image = current_image;

	*out++ = image->head;
	*out++ = image->start;
	*out++ = image->kernel;
	*out++ = image->fdt;
	*out++ = image->control_code;
	*out++ = virt_to_phys(image->pgd);
	*out++ = image->nr_segments;
	for (u64 i = 0; i < image->nr_segments; i++) {
		*out++ = image->segment[i].mem;
		*out++ = image->segment[i].memsz;
		*out++ = image->segment[i].bufsz;
	}
}

bool host_lock(void) { return kexec_trylock(); }
void host_unlock(void) { kexec_unlock(); }

static void hook_a(void) { strcat(shutdowns, "a "); }
static void hook_b(void) { strcat(shutdowns, "b "); }

const char *host_shutdown(void)
{
	static struct shutdown_hook a = { .name = "a", .fn = hook_a }, b = { .name = "b", .fn = hook_b };

	shutdowns[0] = '\0';
	register_shutdown(&a);
	register_shutdown(&b);
	device_shutdown();
	device_shutdown();
	return shutdowns;
}

void host_sha256(const void *data, const u64 *sizes, unsigned int n, u8 *out)
{
	const u8 *p = data;
	struct sha256 s;

	memset(&s, 0xcc, sizeof(s));
	sha256_init(&s);
	for (unsigned int i = 0; i < n; p += sizes[i++])
		sha256_update(&s, p, sizes[i]);
	sha256_final(&s, out);
}
