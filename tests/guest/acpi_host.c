/* arch/acpi.c as a library of the host. Physical memory is what the test put there with host_put(); a mapping is a copy
 * that ends at a page which is not there, so that a read beyond it is a crash. */
#include <sys/mman.h>
#include <stdlib.h>
#include "cpu.h"
#include "arch.h"
#include "page.h"
#include "printk.h"
#include "string.h"

static u16 host_inw(u16 port);
static void host_outb(u16 port, u8 value);
#undef pr_fmt
#define inw(port) host_inw(port)
#define outb(port, value) host_outb(port, value)

#include "../../kernels/arch/acpi.c"

#define CHUNKS_MAX	16
#define MAPS_MAX	256
#define LOG_MAX		16384

struct boot_info boot_info;

static struct {
	u64 phys, size;
	const u8 *data;
} chunks[CHUNKS_MAX];
static unsigned int nr_chunks, nr_maps;
static struct {
	void *at;
	u64 size;
} maps[MAPS_MAX];
static char text[LOG_MAX];
static u64 text_used;
static u16 pm1_control, smi_port;
static bool smi_works;

static u16 host_inw(u16 port)
{
	return port == acpi.pm1a_control ? pm1_control : 0xffff;
}

static void host_outb(u16 port, u8 value)
{
	if (port == smi_port && value == 0xf1 && smi_works)
		pm1_control |= PM1_SCI_ENABLE;
}

int printk(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	text_used += (u64)vsnprintf(text + text_used, LOG_MAX - text_used, fmt + 2, args);
	va_end(args);
	if (text_used >= LOG_MAX)
		abort();
	return 0;
}

void *ioremap(phys_addr_t phys, u64 size)
{
	u64 pages = ALIGN_UP(size, PAGE_SIZE), offset = pages - size;
	u8 *at;

	if (nr_maps == MAPS_MAX || !size)
		return NULL;
	at = mmap(NULL, pages + PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(at + pages, PAGE_SIZE, PROT_NONE);
	maps[nr_maps].at = at;
	maps[nr_maps++].size = pages + PAGE_SIZE;
	memset(at + offset, 0xff, size);
	for (unsigned int i = 0; i < nr_chunks; i++) {
		u64 start = max(phys, chunks[i].phys), end = min(phys + size, chunks[i].phys + chunks[i].size);

		if (start < end)
			memcpy(at + offset + (start - phys), chunks[i].data + (start - chunks[i].phys), end - start);
	}
	return at + offset;
}

void host_put(u64 phys, const u8 *data, u64 size);
void host_put(u64 phys, const u8 *data, u64 size)
{
	if (nr_chunks == CHUNKS_MAX)
		abort();
	chunks[nr_chunks].phys = phys;
	chunks[nr_chunks].size = size;
	chunks[nr_chunks++].data = data;
}

/* Reads the tables; `works` is whether firmware obeys the command to enter ACPI mode at smi. */
void host_run(u64 rsdp, u16 smi, bool works);
void host_run(u64 rsdp, u16 smi, bool works)
{
	memset(&acpi, 0, sizeof(acpi));
	nr_tables = 0;
	tables_found = false;
	text_used = 0;
	text[0] = 0;
	pm1_control = 0;
	smi_port = smi;
	smi_works = works;
	boot_info.rsdp = rsdp;
	acpi_init();
}

void host_end(void);
void host_end(void)
{
	for (unsigned int i = 0; i < nr_maps; i++)
		munmap(maps[i].at, maps[i].size);
	nr_maps = nr_chunks = 0;
}

const char *host_text(void);
const char *host_text(void)
{
	return text;
}

const struct acpi_info *host_info(void);
const struct acpi_info *host_info(void)
{
	return &acpi;
}

u32 host_mode(void);
u32 host_mode(void)
{
	return pm1_control;
}
