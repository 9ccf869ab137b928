/* Time: a clock that counts, and an interrupt a hundred times a second.
 *
 * The clock source is the HPET's main counter (IA-PC HPET 1.0a), else the ACPI PM timer, else the tick itself. A
 * counter may be as narrow as 24 bits (4.7 seconds); what it counted is added up at each tick and each reading, so
 * a wrap is missed only if ticks stay away that long.
 *
 * The interrupt comes from the local APIC timer, whose frequency is measured against the clock source, or against
 * the 8254 where there is none. Measured values are not printed: they differ from run to run on real machines.
 *
 * The HPET is found in whatever state it is (a kernel before this one may have used its timers in place of the 8254 and
 * the RTC): all of its timers are silenced before it counts.
 */
#define pr_fmt(fmt) "time: " fmt
#include "arch.h"
#include "acpi.h"
#include "apic.h"
#include "cpu.h"
#include "hpet.h"
#include "page.h"
#include "panic.h"
#include "printk.h"
#include "sched.h"
#include "timer.h"
#include "traps.h"

#define NS_PER_SEC	1000000000UL
#define FS_PER_SEC	1000000000000000UL

#define HPET_CAPABILITIES	0x000
#define HPET_CONFIG		0x010
#define HPET_STATUS		0x020
#define HPET_COUNTER		0x0f0
#define HPET_TIMER_CONFIG(n)	(0x100 + 0x20 * (n))
#define HPET_SIZE		0x400
#define HPET_CONFIG_ENABLE	(1UL << 0)
#define HPET_CONFIG_LEGACY	(1UL << 1)
#define HPET_PERIOD_MAX_FS	100000000	/* by the specification: 100 ns */

#define PM_TIMER_HZ	3579545UL
#define PIT_HZ		1193182UL
#define CALIBRATION_US	30
#define CALIBRATIONS	3

static volatile u8 *hpet;

/* The counter in use; hz is 0 if there is none. */
static struct {
	u64 (*read)(void);
	u64 mask, hz;
	const char *name;
} source;

static struct {
	spinlock_t lock;
	u64 last;			/* what the counter read */
	u64 counts;			/* since time_init() */
} clock;

volatile u64 jiffies;

static u64 read_hpet_counter(void)
{
	return readl(hpet + HPET_COUNTER);
}

static u64 read_pm_timer(void)
{
	return inl(acpi.pm_timer);
}

static bool init_hpet(void)
{
	u64 capabilities, period;
	unsigned int timers;

	if (!acpi.hpet)
		return false;
	hpet = ioremap(acpi.hpet, HPET_SIZE);
	if (!hpet)
		return false;
	capabilities = readq(hpet + HPET_CAPABILITIES);
	period = capabilities >> 32;
	if (!period || period > HPET_PERIOD_MAX_FS) {
		pr_err("HPET claims an impossible period, ignored\n");
		hpet = NULL;
		return false;
	}
	hpet_off();
	timers = (capabilities >> 8 & 31) + 1;
	for (unsigned int i = 0; i < timers; i++)
		writeq(0, hpet + HPET_TIMER_CONFIG(i));
	writeq(~0UL, hpet + HPET_STATUS);
	writeq(0, hpet + HPET_COUNTER);
	writeq(HPET_CONFIG_ENABLE, hpet + HPET_CONFIG);
	source.read = read_hpet_counter;
	source.mask = 0xffffffff;	/* half of it is enough, and one access on any machine */
	source.hz = (FS_PER_SEC + period / 2) / period;
	source.name = "HPET";
	return true;
}

void hpet_off(void)
{
	u64 config;

	if (!hpet)
		return;
	config = readq(hpet + HPET_CONFIG);
	writeq(config & ~(HPET_CONFIG_ENABLE | HPET_CONFIG_LEGACY), hpet + HPET_CONFIG);
}

static bool init_pm_timer(void)
{
	if (!acpi.pm_timer)
		return false;
	source.read = read_pm_timer;
	source.mask = acpi.pm_timer_32bit ? 0xffffffff : 0xffffff;
	source.hz = PM_TIMER_HZ;
	source.name = "ACPI PM timer";
	return true;
}

/* Whole seconds apart from the rest, so that nothing overflows. */
static u64 counts_to_ns(u64 counts)
{
	return counts / source.hz * NS_PER_SEC + counts % source.hz * NS_PER_SEC / source.hz;
}

u64 ktime_get_ns(void)
{
	u64 flags, now, counts;

	if (!source.hz)
		return jiffies * (NS_PER_SEC / HZ);
	flags = spin_lock_irqsave(&clock.lock);
	now = source.read();
	clock.counts += (now - clock.last) & source.mask;
	clock.last = now;
	counts = clock.counts;
	spin_unlock_irqrestore(&clock.lock, flags);
	return counts_to_ns(counts);
}

/* Between two looks at a device, which cost more than anything else here. */
static void pause_a_little(void)
{
	for (unsigned int i = 0; i < 128; i++)
		cpu_relax();
}

/* Without a clock source, writes to a port that nobody has: each takes about a microsecond on a real bus. */
void udelay(u64 us)
{
	u64 until = ktime_get_ns() + us * 1000;

	if (!source.hz) {
		for (u64 i = 0; i < us; i++)
			outb(0x80, 0);
		return;
	}
	while (ktime_get_ns() < until)
		pause_a_little();
}

/* Counts of the local APIC timer, which runs down, in a stretch of time on the clock source; scaled to one tick. */
static u64 measure_by_source(void)
{
	u64 want = source.hz * CALIBRATION_US / 1000000;
	u64 start = source.read(), passed;
	u32 before = apic_timer_count(), after;

	do {
		pause_a_little();
		passed = (source.read() - start) & source.mask;
		after = apic_timer_count();
	} while (passed < want);
	return (u64)(before - after) * source.hz / HZ / passed;
}

/* The same on channel 2 of the 8254 (Intel 8254), whose gate and output are in port 0x61. */
static u64 measure_by_pit(void)
{
	u16 count = (u16)(PIT_HZ / 1000);
	u32 before, after;

	outb(0x61, (inb(0x61) & ~2) | 1);	/* gate on, speaker off */
	outb(0x43, 0xb0);			/* channel 2, two bytes, mode 0: output rises at the end */
	outb(0x42, (u8)count);
	outb(0x42, (u8)(count >> 8));
	before = apic_timer_count();
	for (u64 tries = 0; !(inb(0x61) & 1 << 5); tries++) {
		if (tries == 1UL << 20)
			panic("no clock to measure the local APIC timer by");
		pause_a_little();
	}
	after = apic_timer_count();
	return (u64)(before - after) * PIT_HZ / HZ / count;
}

/* On a virtual machine the host may take the processor away in the middle of a measurement: of three the middle one. */
static u32 measure_apic_timer(void)
{
	u64 m[CALIBRATIONS], count;

	apic_timer_start_masked(~0U);
	for (unsigned int i = 0; i < CALIBRATIONS; i++)
		m[i] = source.hz ? measure_by_source() : measure_by_pit();
	apic_timer_start_masked(0);
	count = max(min(m[0], m[1]), min(max(m[0], m[1]), m[2]));
	if (!count || count > ~0U)
		panic("the local APIC timer does not count");
	return (u32)count;
}

void time_init(void)
{
	u32 count;

	if (!init_hpet() && !init_pm_timer())
		source.name = "timer interrupt";
	count = measure_apic_timer();
	if (source.hz)
		clock.last = source.read();
	apic_timer_start(count, true, VECTOR_TIMER);
	pr_info("clock source: %s; local APIC timer at %d Hz\n", source.name, HZ);
}

void timer_interrupt(void)
{
	jiffies++;
	ktime_get_ns();
	sched_tick();
}
