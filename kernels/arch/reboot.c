/* The ways to leave a machine: off, reset, halt, and ready for another kernel.
 *
 * All work with interrupts off and without memory, so that they can end any situation. Each has something to fall
 * back on: what cannot switch off halts, what cannot reset crashes the processor, which resets a PC.
 */
#include "arch.h"
#include "acpi.h"
#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "hpet.h"
#include "iommu.h"
#include "printk.h"

#define PM1_SLP_TYP(x)	((x) << 10 & 0x1c00)
#define PM1_SLP_EN	(1U << 13)

_Noreturn void machine_halt(void)
{
	printk_flush();
	while (1) {
		local_irq_disable();
		halt();
	}
}

static void pm1_sleep(u16 port, u8 type)
{
	u16 control;

	if (!port)
		return;
	control = inw(port) & ~(PM1_SLP_TYP(7) | PM1_SLP_EN);
	outw(port, control | PM1_SLP_TYP(type));
	outw(port, control | PM1_SLP_TYP(type) | PM1_SLP_EN);
}

/* The processor runs on until the rest of the machine has heard; on a virtual machine too. */
static void give_it_time(void)
{
	for (unsigned int i = 0; i < 1U << 22; i++)
		cpu_relax();
}

_Noreturn void machine_power_off(void)
{
	local_irq_disable();
	printk_flush();
	console_flush();
	/* the second register completes the request where a machine has two */
	pm1_sleep(acpi.pm1a_control, acpi.s5_type_a);
	pm1_sleep(acpi.pm1b_control, acpi.s5_type_b);
	give_it_time();
	pr_emerg("power off failed, halted\n");
	machine_halt();
}

_Noreturn void machine_restart(void)
{
	static const struct { u16 limit; u64 base; } __packed no_idt = { 0, 0 };

	local_irq_disable();
	printk_flush();
	console_flush();
	if (acpi.reset_port)
		outb(acpi.reset_port, acpi.reset_value);
	outb(0xcf9, 0x02);		/* reset control: a hard reset, then go */
	outb(0xcf9, 0x06);
	outb(0x64, 0xfe);		/* keyboard controller: pulse the reset line */
	give_it_time();
	__asm__ volatile("lidt %0; int3" :: "m"(no_idt));
	machine_halt();
}

void machine_shutdown(void)
{
	local_irq_disable();
	/* other processors: none was started */
	io_apic_mask_all();
	local_apic_off();
	hpet_off();
	iommu_shutdown();
}
