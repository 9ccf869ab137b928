/* The VT-d unit (D51397, legacy mode): registers, root and context tables, invalidation, faults.
 *
 * Everything is invalidated through the queue, and each invalidation is waited for: when a function here returns,
 * hardware has forgotten. Capability CM is 0 on all hardware (it is for shadowing), so what was not present is not
 * cached and needs no invalidation when it comes.
 *
 * Hardware that reads tables past the processor's caches (ECAP.C is 0, as in QEMU) sees them when the caches were
 * written back as a whole: slow and right; vtd_sync() does it, before every invalidation too.
 *
 * All tables are from the page allocator and so never in scratch: they can be handed over as they are.
 */
#define pr_fmt(fmt) "DMAR: " fmt
#include "vtd.h"
#include "acpi.h"
#include "apic.h"
#include "arch.h"
#include "cpu.h"
#include "errno.h"
#include "init.h"
#include "page.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "string.h"
#include "traps.h"

#define CAP_SAGAW(cap)		((cap) >> 8 & 31)
#define CAP_CM			(1UL << 7)
#define CAP_RWBF		(1UL << 4)
#define CAP_FRO(cap)		(((cap) >> 24 & 0x3ff) * 16)
#define CAP_PAGES(cap)		((cap) >> 34 & 3)
#define CAP_PSI			(1UL << 39)
#define CAP_NFR(cap)		(((cap) >> 40 & 0xff) + 1)
#define CAP_MAMV(cap)		((cap) >> 48 & 63)
#define ECAP_COHERENT		1UL
#define ECAP_QI			2UL
#define ECAP_IR			8UL

#define ONE_SHOT		(VTD_SRTP | VTD_SIRTP | 1U << 29 | 1U << 27)	/* GSTS bits that are no state */
#define FECTL_MASK		(1U << 31)
#define FSTS_ALL		0x71U
#define FSTS_QUEUE		(1U << 4)

#define QUEUE_ENTRIES		256U
#define CONTEXT_INV		1UL
#define IOTLB_INV		2UL
#define IEC_INV			4UL
#define WAIT			5UL
#define GLOBAL			(1UL << 4)
#define DOMAIN			(2UL << 4)
#define SELECTIVE		(3UL << 4)	/* of a function, of pages */
#define DRAIN			(3UL << 6)
#define WAIT_WRITE		(1UL << 5)

#define PATIENCE		10000000U	/* looks at a register before hardware counts as broken */

struct vtd_unit vtd;
static bool off;			/* iommu=off */
static struct vtd_entry *queue;
static u32 tail;
static volatile u32 done_word;		/* hardware writes here */
static spinlock_t queue_lock = SPINLOCK_INIT;

static int iommu_param(const char *value)
{
	off = !strcmp(value, "off");
	return off ? 0 : -EINVAL;
}
early_param("iommu", iommu_param);

bool vtd_off(void) { return off; }

static u32 read32(u32 reg) { return readl(vtd.registers + reg); }
static void write32(u32 reg, u32 v) { writel(v, vtd.registers + reg); }
static void write64(u32 reg, u64 v) { writeq(v, vtd.registers + reg); }

/* ---- finding it ---- */

bool vtd_find(void)
{
	const u8 *table = acpi_table("DMAR");
	volatile u8 *registers;

	if (vtd.registers)
		return true;
	if (!table)
		return false;
	if (!dmar_parse(&vtd.dmar, table, get_unaligned_u32(table + 4))) {
		pr_err("the table is malformed, or lists more than one unit: no remapping\n");
		return false;
	}
	registers = ioremap(vtd.dmar.registers, PAGE_SIZE);
	if (!registers)
		return false;
	vtd.cap = readq(registers + VTD_CAP);
	vtd.ecap = readq(registers + VTD_ECAP);
	if (!(vtd.ecap & ECAP_QI) || !(CAP_SAGAW(vtd.cap) & 6) || vtd.cap & (CAP_CM | CAP_RWBF) ||
	    vtd.cap == ~0UL) {
		pr_err("the unit lacks what is needed: no remapping\n");
		return false;
	}
	vtd.levels = CAP_SAGAW(vtd.cap) & 4 ? 4 : 3;
	vtd.largest = CAP_PAGES(vtd.cap) & 1 ? CAP_PAGES(vtd.cap) & 2 ? 3 : 2 : 1;
	vtd.interrupts = vtd.dmar.interrupts && vtd.ecap & ECAP_IR && vtd.dmar.nr_io_apics;
	vtd.registers = registers;
	return true;
}

void vtd_sync(void)
{
	if (!(vtd.ecap & ECAP_COHERENT))
		__asm__ volatile("wbinvd" ::: "memory");
	barrier();
}

/* ---- commands ---- */

static bool wait_for(u32 bit, bool on)
{
	for (u32 i = 0; i < PATIENCE; i++) {
		if (!(read32(VTD_GSTS) & bit) == !on)
			return true;
		cpu_relax();
	}
	pr_err("the unit does not answer to command %#x\n", bit);
	return false;
}

static void command(u32 bit, bool on)
{
	u32 now = read32(VTD_GSTS) & ~ONE_SHOT;

	write32(VTD_GCMD, on ? now | bit : now & ~bit);
	wait_for(bit, on);
}

/* One descriptor, and a wait for it. */
static void invalidate(u64 low, u64 high)
{
	u64 flags = spin_lock_irqsave(&queue_lock);
	u32 i;

	done_word = 0;
	queue[tail] = (struct vtd_entry){ low, high };
	tail = (tail + 1) % QUEUE_ENTRIES;
	queue[tail] = (struct vtd_entry){ WAIT | WAIT_WRITE | 1UL << 32, virt_to_phys(&done_word) };
	tail = (tail + 1) % QUEUE_ENTRIES;
	vtd_sync();
	write64(VTD_IQT, tail * sizeof(*queue));
	for (i = 0; i < PATIENCE && !done_word; i++)
		cpu_relax();
	/* What hardware still knows may lead a device to memory that is given out next. */
	if (!done_word)
		panic("DMAR: the unit does not invalidate (status %#x)", read32(VTD_FSTS));
	spin_unlock_irqrestore(&queue_lock, flags);
}

void vtd_flush_domain(u32 domain)
{
	invalidate(IOTLB_INV | DOMAIN | DRAIN | (u64)domain << 16, 0);
}

void vtd_flush_pages(u32 domain, u64 iova, u64 size)
{
	u32 order = 0;

	while ((PAGE_SIZE << order) < size || !IS_ALIGNED(iova, PAGE_SIZE << order)) {
		iova = ALIGN_DOWN(iova, PAGE_SIZE << order);
		if (++order > CAP_MAMV(vtd.cap) || !(vtd.cap & CAP_PSI)) {
			vtd_flush_domain(domain);
			return;
		}
	}
	invalidate(IOTLB_INV | SELECTIVE | DRAIN | (u64)domain << 16, iova | order);
}

void vtd_flush_interrupt(u32 index)
{
	invalidate(IEC_INV | 1UL << 4 | (u64)index << 32, 0);
}

static void flush_all(void)
{
	invalidate(CONTEXT_INV | GLOBAL, 0);
	invalidate(IOTLB_INV | GLOBAL | DRAIN, 0);
	if (vtd.interrupts)
		invalidate(IEC_INV, 0);
}

/* ---- contexts ---- */

struct vtd_entry *vtd_context(u16 bdf)
{
	u64 entry = vtd.root[bdf >> 8].low;

	return entry ? (struct vtd_entry *)phys_to_virt(entry & VTD_ADDRESS) + (bdf & 0xff) : NULL;
}

void vtd_clear_context(u16 bdf, u32 domain)
{
	struct vtd_entry *e = vtd_context(bdf);

	if (!e || !e->low)
		return;
	WRITE_ONCE(e->low, 0);
	WRITE_ONCE(e->high, 0);
	invalidate(CONTEXT_INV | SELECTIVE | (u64)domain << 16 | (u64)bdf << 32, 0);
	vtd_flush_domain(domain);
}

int vtd_set_context(u16 bdf, u32 domain, const struct vtd_tables *t)
{
	struct vtd_entry *e = vtd_context(bdf);

	if (!e) {
		void *table = get_zeroed_page();
		int err = table ? iommu_luo_table(table) : -ENOMEM;

		if (err) {
			if (table)
				free_page(table);
			return err;
		}
		WRITE_ONCE(vtd.root[bdf >> 8].low, virt_to_phys(table) | VTD_PRESENT);
		e = vtd_context(bdf);
	}
	if (e->low)
		vtd_clear_context(bdf, (u32)(e->high >> 8 & 0xffff));
	WRITE_ONCE(e->high, (u64)domain << 8 | vtd_width(t->levels));
	vtd_sync();
	WRITE_ONCE(e->low, virt_to_phys(t->top) | VTD_PRESENT);
	vtd_sync();
	return 0;
}

/* ---- faults ---- */

static volatile u8 *fault_record(u32 i) { return vtd.registers + CAP_FRO(vtd.cap) + 16 * i; }

static void clear_faults(void)
{
	for (u32 i = 0; i < CAP_NFR(vtd.cap); i++)
		writel(1U << 31, fault_record(i) + 12);
	write32(VTD_FSTS, FSTS_ALL);
}

/* A function that does what it may not does so a million times a second: the first is what matters. */
static bool first_of(u16 source)
{
	static u16 seen[64];
	static u32 nr_seen;

	for (u32 i = 0; i < nr_seen; i++)
		if (seen[i] == source)
			return false;
	if (nr_seen == ARRAY_SIZE(seen))
		return false;
	seen[nr_seen++] = source;
	return true;
}

void vtd_fault_interrupt(void)
{
	u32 status;

	if (!vtd.registers)
		return;
	for (u32 i = 0; i < CAP_NFR(vtd.cap); i++) {
		u64 low = readq(fault_record(i)), high = readq(fault_record(i) + 8);
		u16 source = (u16)high;
		u32 reason = (u32)(high >> 32) & 0xff;

		if (!(high >> 63))
			continue;
		writel(1U << 31, fault_record(i) + 12);
		if (!first_of(source))
			continue;
		if (reason >= 0x20)
			pr_err("%02x:%02x.%u: interrupt %lu refused, reason %#x; more of this function will not be said\n",
			       source >> 8, source >> 3 & 31, source & 7, low >> 48, reason);
		else
			pr_err("%02x:%02x.%u: %s %#lx refused, reason %#x; more of this function will not be said\n",
			       source >> 8, source >> 3 & 31, source & 7, high >> 62 & 1 ? "read of" : "write to",
			       low & ~0xfffUL, reason);
	}
	status = read32(VTD_FSTS);
	if (status & FSTS_QUEUE)
		pr_err("invalidation error, status %#x\n", status);
	write32(VTD_FSTS, FSTS_ALL);
}

void vtd_quiet(void) { write32(VTD_FECTL, FECTL_MASK); }

static int fault_init(void)
{
	if (!vtd.registers)
		return 0;
	write32(VTD_FEDATA, VECTOR_REMAPPING);
	write32(VTD_FEADDR, 0xfee00000U | local_apic_id() << 12);
	write32(VTD_FEUADDR, 0);
	write32(VTD_FECTL, 0);
	return 0;
}
early_initcall(fault_init);

/* ---- on and off ---- */

static void *table_page(void)
{
	void *p = get_zeroed_page();

	if (!p)
		panic("no memory for the tables of DMA remapping");
	return p;
}

void vtd_start(bool adopted)
{
	vtd_quiet();
	clear_faults();
	/* The queue is this kernel's own: nothing is in the other one. */
	command(VTD_QIE, false);
	queue = table_page();
	tail = 0;
	write64(VTD_IQT, 0);
	write64(VTD_IQA, virt_to_phys(queue));
	command(VTD_QIE, true);
	if (adopted)
		return;
	/* Off before the tables are others, on when hardware knows no old ones. Nothing does DMA now. */
	command(VTD_TE, false);
	command(VTD_IRE, false);
	vtd.root = table_page();
	write64(VTD_RTADDR, virt_to_phys(vtd.root));
	command(VTD_SRTP, true);
	if (vtd.interrupts) {
		vtd.irt = table_page();
		write64(VTD_IRTA, virt_to_phys(vtd.irt) | VTD_IRTA_SIZE);
		command(VTD_SIRTP, true);
	}
	flush_all();
	command(VTD_TE, true);
	if (vtd.interrupts)
		command(VTD_IRE, true);
}

void vtd_stop(void)
{
	static const u32 enables[] = { VTD_TE, VTD_IRE, VTD_QIE };

	for (u32 i = 0; i < ARRAY_SIZE(enables); i++)
		if (read32(VTD_GSTS) & enables[i])
			command(enables[i], false);
}
