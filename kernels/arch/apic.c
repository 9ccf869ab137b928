/* Local APIC (Intel SDM volume 3, chapter "APIC") and I/O APIC (Intel 82093AA).
 *
 * Nothing is assumed of their state: a kernel before this one may have left the local APIC in x2APIC mode, its timer
 * running, interrupts requested or in service that nobody will end any more, and pins of the I/O APIC that wait for
 * an EOI. The mode stays as it is found; all else is put back to the state after reset before anything is enabled.
 *
 * The I/O APIC addresses processors physically, by their APIC id.
 */
#define pr_fmt(fmt) "APIC: " fmt
#include "apic.h"
#include "acpi.h"
#include "cpu.h"
#include "iommu.h"
#include "page.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "traps.h"

#define APIC_BASE_X2APIC	(1UL << 10)
#define APIC_BASE_ENABLE	(1UL << 11)
#define MSR_X2APIC		0x800

#define APIC_ID		0x020
#define APIC_VERSION	0x030
#define APIC_TPR	0x080
#define APIC_EOI	0x0b0
#define APIC_LDR	0x0d0		/* these two in xAPIC mode only */
#define APIC_DFR	0x0e0
#define APIC_SVR	0x0f0
#define APIC_ISR	0x100
#define APIC_ESR	0x280
#define APIC_ICR	0x300
#define APIC_ICR_HIGH	0x310		/* destination; in x2APIC mode the upper half of the ICR */
#define APIC_LVT_TIMER	0x320
#define APIC_LVT_THERMAL 0x330
#define APIC_LVT_PERF	0x340
#define APIC_LVT_LINT0	0x350
#define APIC_LVT_LINT1	0x360
#define APIC_LVT_ERROR	0x370
#define APIC_INITIAL	0x380
#define APIC_CURRENT	0x390
#define APIC_DIVIDE	0x3e0

#define SVR_ENABLE	(1U << 8)
#define LVT_MASKED	(1U << 16)
#define LVT_PERIODIC	(1U << 17)
#define LVT_NMI		(4U << 8)
#define ICR_NMI		(4U << 8)
#define ICR_ASSERT	(1U << 14)
#define DIVIDE_BY_16	3

#define IO_APIC_INDEX	0x00
#define IO_APIC_DATA	0x10
#define IO_APIC_VERSION	0x01
#define IO_APIC_ENTRY(n) (0x10 + 2 * (n))
#define ENTRY_ACTIVE_LOW (1U << 13)
#define ENTRY_LEVEL	(1U << 15)
#define ENTRY_MASKED	(1U << 16)

static volatile u8 *registers;	/* NULL in x2APIC mode */

static struct io_apic {
	volatile u8 *registers;
	u32 id, gsi_base, pins;
} io_apics[IO_APIC_MAX];
static unsigned int nr_io_apics;
static spinlock_t io_apic_lock = SPINLOCK_INIT;	/* index and data belong together */

static u32 apic_read(u32 reg)
{
	return registers ? readl(registers + reg) : (u32)rdmsr(MSR_X2APIC + (reg >> 4));
}

static void apic_write(u32 reg, u32 value)
{
	if (registers)
		writel(value, registers + reg);
	else
		wrmsr(MSR_X2APIC + (reg >> 4), value);
}

void apic_eoi(void)
{
	apic_write(APIC_EOI, 0);
}

bool apic_in_service(u8 vector)
{
	return apic_read(APIC_ISR + 0x10 * (vector / 32)) >> (vector % 32) & 1;
}

u32 local_apic_id(void)
{
	return registers ? apic_read(APIC_ID) >> 24 : apic_read(APIC_ID);
}

void apic_send_nmi(void)
{
	if (registers) {
		apic_write(APIC_ICR_HIGH, local_apic_id() << 24);
		apic_write(APIC_ICR, ICR_NMI | ICR_ASSERT);
	} else {
		wrmsr(MSR_X2APIC + (APIC_ICR >> 4), (u64)local_apic_id() << 32 | ICR_NMI | ICR_ASSERT);
	}
}

/* Local interrupts that this APIC has, all masked. */
static void mask_local_interrupts(void)
{
	u32 last = apic_read(APIC_VERSION) >> 16 & 0xff;

	apic_write(APIC_LVT_TIMER, LVT_MASKED);
	apic_write(APIC_INITIAL, 0);
	apic_write(APIC_LVT_LINT0, LVT_MASKED);
	apic_write(APIC_LVT_LINT1, LVT_MASKED);
	if (last >= 3)
		apic_write(APIC_LVT_ERROR, LVT_MASKED);
	if (last >= 4)
		apic_write(APIC_LVT_PERF, LVT_MASKED);
	if (last >= 5)
		apic_write(APIC_LVT_THERMAL, LVT_MASKED);
}

/* Each EOI ends the highest interrupt in service; there may be one of each of 15 priorities. What is requested and was
 * not taken yet will come as an interrupt without a handler, see irq.c. */
static void end_interrupts_in_service(void)
{
	for (unsigned int i = 0; i < 256; i++) {
		u32 any = 0;

		for (u32 bank = 0; bank < 8; bank++)
			any |= apic_read(APIC_ISR + 0x10 * bank);
		if (!any)
			return;
		apic_eoi();
	}
}

void local_apic_init(void)
{
	u32 features[4];
	u64 base;

	cpuid(1, 0, features);
	if (!(features[3] & 1U << 9))
		panic("this processor has no local APIC");
	base = rdmsr(MSR_APIC_BASE);
	if (!(base & APIC_BASE_ENABLE)) {
		base |= APIC_BASE_ENABLE;
		wrmsr(MSR_APIC_BASE, base);
	}
	if (!(base & APIC_BASE_X2APIC)) {
		registers = ioremap(base & PTE_ADDR, PAGE_SIZE);
		if (!registers)
			panic("no memory to map the local APIC");
	}
	apic_write(APIC_SVR, SVR_ENABLE | VECTOR_SPURIOUS);
	mask_local_interrupts();
	apic_write(APIC_TPR, 0);
	if (registers) {
		apic_write(APIC_DFR, 0xffffffff);
		apic_write(APIC_LDR, 1U << 24);
	}
	end_interrupts_in_service();
	apic_write(APIC_ESR, 0);
	apic_write(APIC_LVT_LINT1, LVT_NMI);
	apic_write(APIC_LVT_ERROR, VECTOR_ERROR);
}

void local_apic_off(void)
{
	mask_local_interrupts();
	end_interrupts_in_service();
	apic_write(APIC_SVR, VECTOR_SPURIOUS);
}

void apic_timer_start(u32 count, bool periodic, u8 vector)
{
	apic_write(APIC_DIVIDE, DIVIDE_BY_16);
	apic_write(APIC_LVT_TIMER, (periodic ? LVT_PERIODIC : 0) | vector);
	apic_write(APIC_INITIAL, count);
}

void apic_timer_start_masked(u32 count)
{
	apic_write(APIC_DIVIDE, DIVIDE_BY_16);
	apic_write(APIC_LVT_TIMER, LVT_MASKED | VECTOR_TIMER);
	apic_write(APIC_INITIAL, count);
}

u32 apic_timer_count(void)
{
	return apic_read(APIC_CURRENT);
}

static u32 io_apic_read(const struct io_apic *a, u32 reg)
{
	writel(reg, a->registers + IO_APIC_INDEX);
	return readl(a->registers + IO_APIC_DATA);
}

static void io_apic_write(const struct io_apic *a, u32 reg, u32 value)
{
	writel(reg, a->registers + IO_APIC_INDEX);
	writel(value, a->registers + IO_APIC_DATA);
}

/* An edge-triggered entry has no interrupt that waits for its EOI: so writing one also ends what was left of a level. */
static void mask_pin(const struct io_apic *a, u32 pin)
{
	io_apic_write(a, IO_APIC_ENTRY(pin), ENTRY_MASKED);
	io_apic_write(a, IO_APIC_ENTRY(pin) + 1, 0);
}

void io_apic_mask_all(void)
{
	u64 flags = spin_lock_irqsave(&io_apic_lock);

	for (unsigned int i = 0; i < nr_io_apics; i++)
		for (u32 pin = 0; pin < io_apics[i].pins; pin++)
			mask_pin(&io_apics[i], pin);
	spin_unlock_irqrestore(&io_apic_lock, flags);
}

void io_apic_init(void)
{
	for (unsigned int i = 0; i < acpi.nr_io_apics; i++) {
		struct io_apic *a = &io_apics[nr_io_apics];
		u32 version;

		a->registers = ioremap(acpi.io_apic[i].phys, PAGE_SIZE);
		if (!a->registers)
			panic("no memory to map an I/O APIC");
		version = io_apic_read(a, IO_APIC_VERSION);
		if (version == ~0U) {
			pr_err("I/O APIC %u does not answer, ignored\n", i);
			continue;
		}
		a->id = acpi.io_apic[i].id;
		a->gsi_base = acpi.io_apic[i].gsi_base;
		a->pins = (version >> 16 & 0xff) + 1;
		nr_io_apics++;
		pr_info("I/O APIC %u: interrupts %u to %u\n", i, a->gsi_base, a->gsi_base + a->pins - 1);
	}
	io_apic_mask_all();
}

static const struct io_apic *io_apic_of(unsigned int gsi)
{
	for (unsigned int i = 0; i < nr_io_apics; i++)
		if (gsi >= io_apics[i].gsi_base && gsi - io_apics[i].gsi_base < io_apics[i].pins)
			return &io_apics[i];
	return NULL;
}

bool io_apic_has_gsi(unsigned int gsi)
{
	return io_apic_of(gsi) != NULL;
}

void io_apic_route(unsigned int gsi, u8 vector, bool level, bool active_low)
{
	const struct io_apic *a = io_apic_of(gsi);
	u32 pin = gsi - a->gsi_base;
	u64 entry = irq_io_apic_entry(a->id, pin, vector, level), flags;

	if (!entry)
		entry = (u64)local_apic_id() << 56 | vector;
	flags = spin_lock_irqsave(&io_apic_lock);

	mask_pin(a, pin);
	io_apic_write(a, IO_APIC_ENTRY(pin) + 1, (u32)(entry >> 32));
	io_apic_write(a, IO_APIC_ENTRY(pin),
		      (u32)entry | (level ? ENTRY_LEVEL : 0) | (active_low ? ENTRY_ACTIVE_LOW : 0));
	spin_unlock_irqrestore(&io_apic_lock, flags);
}

void io_apic_mask(unsigned int gsi)
{
	const struct io_apic *a = io_apic_of(gsi);
	u64 flags = spin_lock_irqsave(&io_apic_lock);

	mask_pin(a, gsi - a->gsi_base);
	spin_unlock_irqrestore(&io_apic_lock, flags);
}
