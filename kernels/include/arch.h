/* What the rest of the kernel asks of arch/: start-up, memory map, interrupts, time, switching off. */
#pragma once
#include "types.h"
#include "ptrace.h"

/* ---- start-up (arch/head.c, arch/setup.c) ---- */

/* What the boot loader handed over, copied out of boot_params (Linux x86 boot protocol) or PVH's start info. */
struct boot_info {
	phys_addr_t cmdline, initrd, setup_data, rsdp;
	u64 initrd_size;
	phys_addr_t boot_params;	/* 0 when booted by PVH */
	bool pvh;
};
extern struct boot_info boot_info;

struct e820_entry {
	u64 addr, size;
	u32 type;			/* 1 RAM, 2 reserved, 3 ACPI tables, 4 ACPI NVS */
} __attribute__((packed));
#define E820_RAM	1
#define E820_MAX	128
extern struct e820_entry e820_table[E820_MAX];
extern unsigned int e820_count;

/* From the boot loader's data to a direct map of all RAM and a filled memblock: parse_setup_data() (KHO's populate),
 * early parameters, memblock, direct map. */
void setup_arch(void);
/* Makes [phys, phys + size) readable and writable through the direct map before it is complete. */
void *early_map(phys_addr_t phys, u64 size);

/* Where the running image is: physical address of its first byte, and its size with .bss. */
extern phys_addr_t kernel_phys;
extern char _text[], _etext[], _rodata[], _erodata[], _data[], _end[];

/* ---- processor and traps (arch/cpu.c, arch/traps.c) ---- */

void cpu_init(void);			/* GDT, TSS with IST stacks, per-CPU base, IDT, EFER, CR0.WP */
void set_kernel_stack(void *top);	/* TSS.rsp0 */

/* A handler may fix the fault and return true; otherwise die(). By vector, below 32. Returns the one it replaces. */
typedef bool (*trap_handler_t)(struct pt_regs *regs, u64 fault_address);
trap_handler_t set_trap_handler(unsigned int vector, trap_handler_t handler);

/* ---- interrupts (arch/apic.c, arch/irq.c) ---- */

typedef void (*irq_handler_t)(unsigned int gsi, void *data);
void interrupts_init(void);		/* 8259 masked, local APIC, I/O APIC by MADT */
int request_irq(unsigned int gsi, irq_handler_t handler, void *data);	/* ISA numbers: use isa_irq_to_gsi() */
unsigned int isa_irq_to_gsi(unsigned int irq);
void free_irq(unsigned int gsi);
/* A vector for messages of a device: number or -ENOSPC. The handler gets it instead of a GSI. */
int request_vector(irq_handler_t handler, void *data);
void free_vector(int vector);
bool in_interrupt(void);

/* ---- ACPI tables (arch/acpi.c) ---- */

void acpi_init(void);
/* Table with this signature, mapped, checksum verified; NULL if there is none. */
const void *acpi_table(const char signature[4]);

/* ---- time (arch/time.c) ---- */

#define HZ 100
extern volatile u64 jiffies;		/* timer interrupts since time_init() */
void time_init(void);			/* starts the periodic timer interrupt */
u64 ktime_get_ns(void);			/* since time_init(); HPET, else ACPI PM timer */
void udelay(u64 us);

/* ---- the end (arch/reboot.c) ---- */

_Noreturn void machine_power_off(void);	/* ACPI S5 */
_Noreturn void machine_restart(void);	/* ACPI reset register, then 0xcf9, keyboard controller, triple fault */
_Noreturn void machine_halt(void);
/* Before a kexec, in this order: other CPUs, I/O APIC masked, local APIC off, HPET off. */
void machine_shutdown(void);
