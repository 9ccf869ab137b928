/* What every file of the self-test guest shares: checks, printing, traps, and the instructions C has no word
 * for. The guest is one small program without threads; all of its state is global. */
#ifndef SELFTEST_H
#define SELFTEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- results (report.c) ------------------------------------------------------------------------------- */

/* A test is begin(), any number of expect*(), end(). end() prints "name: ok"; a failed expectation prints
 * what was expected and what came at once. Labels say which of several expectations it was. */
void begin(const char *name);
void expect(const char *label, uint64_t got, uint64_t want);
void expect_true(const char *label, bool holds);
void expect_range(const char *label, uint64_t got, uint64_t low, uint64_t high);
void end(void);

extern uint64_t tests_run, tests_failed;

void print(const char *s);
void print_hex(uint64_t value);
void print_dec(uint64_t value);

/* ---- groups (main.c) ---------------------------------------------------------------------------------- */

void test_cpu(void);
void test_fault(void);
void test_string(void);
void test_ring3(void);
void test_fpu(void);
void test_debug(void);
void test_mmu(void);
void test_smc(void);
void test_acpi(void);
void test_pci(void);
void test_uart(void);
void test_pic(void);
void test_pit(void);
void test_rtc(void);
void test_pmtimer(void);
void test_lapic(void);
void test_ioapic(void);
void test_hpet(void);
void test_timing(void);
void test_svm(void);
void test_e1000(void);
void test_edu(void);
void test_vtd(void);

bool run_action(const char *what);   /* action.c: do=…; false if there is no such action */
bool run_bench(const char *name);    /* bench.c: do=bench=… */
bool same(const char *a, const char *b);

/* ---- traps (trap.c) ----------------------------------------------------------------------------------- */

enum vector {
  DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8, TS = 10, NP = 11, SS = 12,
  GP = 13, PF = 14, MF = 16, AC = 17, XM = 19,
  PIC_BASE = 0x20,   /* IRQ n of the 8259 pair arrives at PIC_BASE + n */
  DONE = 0x80,       /* `int $0x80`: ring 3 is done; the only gates ring 3 may call are 3, 4 and this */
  NO_FAULT = 256,
};

struct frame {
  uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
  uint64_t vector, error;
  uint64_t rip, cs, rflags, rsp, ss;
};

struct seen {
  struct frame frame;
  uint64_t cr2;
  uint64_t stack;    /* address of the frame: tells which stack the processor chose */
};

extern struct seen seen;                 /* the trap that ended the last try_call */
uint64_t try_call(void (*f)(void *), void *arg);

/* Looks at a trap first; true: handled, resume at the (possibly changed) frame. Cleared by its owner. */
extern bool (*volatile trap_hook)(struct frame *f, uint64_t cr2);

/* Interrupts: a vector with a handler is counted and its handler called; any other is an unexpected trap. */
extern void (*volatile irq_handler[256])(struct frame *f);
extern volatile uint64_t irq_count[256];
void irq_none(struct frame *f);          /* a handler that does nothing: no EOI */

void trap_init(void);
void set_gate(unsigned vector, void *handler, unsigned dpl, unsigned ist);
void clear_gate(unsigned vector);       /* not present */
void set_ist(unsigned ist, void *top);
void load_idt(unsigned bytes);           /* limit of the IDT, in bytes; 4096 is all of it */
_Noreturn void power_off(void);

#define KERNEL_CS 0x08
#define KERNEL_SS 0x10
#define USER_CS32 0x1b
#define USER_SS 0x23
#define USER_CS 0x2b
#define TSS_SEL 0x30
#define ABSENT_SEL 0x40      /* a data segment that is not present */
#define KERNEL_CS32 0x48
#define SPARE_SEL 0x50       /* for tests */
extern uint64_t gdt[16];
extern uint8_t tss[104 + 8192 + 8];      /* with a whole I/O permission bitmap */
#define IOPB 104
extern uint8_t trap_stack[16384], ist_stack[8][8192];
extern char trap_stubs[];

struct iret_frame { uint64_t rip, cs, rflags, rsp, ss, arg; };
void iret_to(const struct iret_frame *f);

/* Runs `code` (in section .user) in ring 3 with rdi = arg until it traps; returns the vector. */
uint64_t user_call(void *code, uint64_t arg);
uint64_t user_call_as(void *code, uint64_t arg, uint64_t cs, uint64_t rflags);

/* ---- memory (paging.c) ------------------------------------------------------------------------------------ */

#define P (1UL << 0)
#define W (1UL << 1)
#define U (1UL << 2)
#define A (1UL << 5)
#define D (1UL << 6)
#define PS (1UL << 7)
#define G (1UL << 8)
#define NX (1UL << 63)
#define ADDR 0x000ffffffffff000UL

#define PAGE 4096UL
#define TEST_VA 0x8000000000UL     /* 64 MiB in 4 KiB pages for tests, not mapped between tests */
#define TEST_PAGES 16384UL
#define USER_VA 0x40000000UL         /* ring 3: text (the .user section), then the stack; below 4 GiB for 32-bit code */
#define USER_STACK 0x40100000UL      /* top; four pages below it */
#define SCRATCH 0x1000000UL        /* physical, 1:1, NX: pages for tests up to the end of RAM (256 MiB) */

void mmu_init(void);
volatile uint64_t *pte(uint64_t va);   /* the 4 KiB entry of a TEST_VA or USER_VA address */
void map(uint64_t va, uint64_t pa, uint64_t bits);   /* sets the entry and INVLPGs */
void unmap_tests(void);                /* clears all TEST_VA entries and flushes */
extern uint64_t pml4[512], low_pdpt[512], test_pdpt[512], test_pd[512];

/* ---- machine (acpi.c, pic.c, lapic.c, hpet.c) ------------------------------------------------------------- */

struct start_info {
  uint32_t magic, version, flags, nr_modules;
  uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
  uint32_t memmap_entries, reserved;
};
extern const struct start_info *start_info;

const uint8_t *acpi_table(const char *signature);   /* NULL if there is none; checksum already checked */
extern uint64_t acpi_bad_checksums;
void acpi_init(void);
void acpi_power_off(void);
uint16_t pm_timer_port(void);
unsigned pm_timer_bits(void);
uint64_t ecam_base(void);
uint32_t io_apic_base(void);
uint32_t gsi_of_irq0(void);
uint64_t hpet_base(void);

/* The educational device (edu.c). edu_init() is false where there is none. */
bool edu_init(void);
bool edu_transfer(uint64_t from, uint64_t to, uint32_t bytes, uint32_t command);   /* false: it never ends */
void edu_raise(uint32_t bits);
void edu_acknowledge(uint32_t bits);
void edu_msi(uint32_t address, uint32_t data);   /* address 0: off */
unsigned edu_pin(void);                          /* its pin of the I/O APIC */
extern uint16_t edu_source;

void pic_init(void);              /* both 8259 at PIC_BASE, all masked */
void pic_mask(unsigned irq, bool masked);
void pic_eoi(unsigned irq);
void lapic_init(void);            /* xAPIC mode, enabled, everything masked, TPR 0 */
uint32_t lapic_read(uint32_t reg);
void lapic_write(uint32_t reg, uint32_t value);
void lapic_eoi(void);
void io_apic_write_entry(unsigned pin, uint64_t entry);
uint64_t io_apic_read_entry(unsigned pin);
void pit_stop(void);              /* channel 0 quiet: mode 0, count never loaded */
void pit_start(unsigned channel, unsigned mode, unsigned count);
unsigned pit_read(unsigned channel);

/* Spins until *counter reaches `want`; false when it does not within a very long time. */
bool wait_for(const volatile uint64_t *counter, uint64_t want);
void spin(uint64_t rounds);
void drain(void);                 /* takes what is pending */

enum lapic_register {
  LAPIC_ID = 0x20, LAPIC_VERSION = 0x30, LAPIC_TPR = 0x80, LAPIC_PPR = 0xa0, LAPIC_EOI = 0xb0, LAPIC_LDR = 0xd0,
  LAPIC_DFR = 0xe0, LAPIC_SVR = 0xf0, LAPIC_ISR = 0x100, LAPIC_TMR = 0x180, LAPIC_IRR = 0x200, LAPIC_ESR = 0x280,
  LAPIC_ICR = 0x300, LAPIC_ICR_HIGH = 0x310, LAPIC_TIMER = 0x320, LAPIC_LINT0 = 0x350, LAPIC_LINT1 = 0x360,
  LAPIC_ERROR = 0x370, LAPIC_INITIAL = 0x380, LAPIC_CURRENT = 0x390, LAPIC_DIVIDE = 0x3e0,
};
#define LVT_MASKED 0x10000u

enum msr {
  MSR_TSC = 0x10, MSR_APIC_BASE = 0x1b, MSR_MTRR_CAP = 0xfe, MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_ESP = 0x175,
  MSR_SYSENTER_EIP = 0x176, MSR_MTRR_BASE0 = 0x200, MSR_MTRR_MASK0 = 0x201, MSR_PAT = 0x277,
  MSR_MTRR_DEFAULT = 0x2ff, MSR_TSC_DEADLINE = 0x6e0, MSR_X2APIC = 0x800, MSR_EFER = 0xc0000080,
  MSR_STAR = 0xc0000081, MSR_LSTAR = 0xc0000082, MSR_CSTAR = 0xc0000083, MSR_FMASK = 0xc0000084,
  MSR_FS_BASE = 0xc0000100, MSR_GS_BASE = 0xc0000101, MSR_KERNEL_GS_BASE = 0xc0000102, MSR_TSC_AUX = 0xc0000103,
  MSR_VM_CR = 0xc0010114, MSR_VM_HSAVE_PA = 0xc0010117,
};

/* ---- instructions ------------------------------------------------------------------------------------- */

static inline void outb(uint16_t port, uint8_t v) {
  __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port) : "memory");
}
static inline void outw(uint16_t port, uint16_t v) {
  __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port) : "memory");
}
static inline void outl(uint16_t port, uint32_t v) {
  __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port) : "memory");
}
static inline uint8_t inb(uint16_t port) {
  uint8_t v;
  __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port) : "memory");
  return v;
}
static inline uint16_t inw(uint16_t port) {
  uint16_t v;
  __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port) : "memory");
  return v;
}
static inline uint32_t inl(uint16_t port) {
  uint32_t v;
  __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port) : "memory");
  return v;
}
static inline uint64_t rdmsr(uint32_t msr) {
  uint32_t low, high;
  __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
  return (uint64_t)high << 32 | low;
}
static inline void wrmsr(uint32_t msr, uint64_t v) {
  __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)) : "memory");
}
static inline uint64_t rdtsc(void) {
  uint32_t low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
  return (uint64_t)high << 32 | low;
}
struct cpuid { uint32_t eax, ebx, ecx, edx; };
static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf) {
  struct cpuid r;
  __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
  return r;
}
#define CONTROL(n)                                                                                              \
  static inline uint64_t read_cr##n(void) {                                                                     \
    uint64_t v;                                                                                                 \
    __asm__ volatile("movq %%cr" #n ", %0" : "=r"(v) : : "memory");                                              \
    return v;                                                                                                   \
  }                                                                                                             \
  static inline void write_cr##n(uint64_t v) { __asm__ volatile("movq %0, %%cr" #n : : "r"(v) : "memory"); }
CONTROL(0)
CONTROL(2)
CONTROL(3)
CONTROL(4)
CONTROL(8)
static inline void invlpg(uint64_t va) { __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory"); }
static inline void sti(void) { __asm__ volatile("sti" : : : "memory"); }
static inline void cli(void) { __asm__ volatile("cli" : : : "memory"); }
static inline void pause(void) { __asm__ volatile("pause" : : : "memory"); }
/* hlt in the shadow of sti: an interrupt that is already pending still wakes it */
static inline void sti_hlt_cli(void) { __asm__ volatile("sti; hlt; cli" : : : "memory"); }
static inline uint64_t read_flags(void) {
  uint64_t v;
  __asm__ volatile("pushfq; popq %0" : "=r"(v) : : "memory");
  return v;
}
static inline volatile uint8_t *at8(uint64_t a) { return (volatile uint8_t *)a; }
static inline volatile uint16_t *at16(uint64_t a) { return (volatile uint16_t *)a; }
static inline volatile uint32_t *at32(uint64_t a) { return (volatile uint32_t *)a; }
static inline volatile uint64_t *at64(uint64_t a) { return (volatile uint64_t *)a; }

void *memset(void *d, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);
void *memmove(void *d, const void *s, size_t n);

/* A piece of assembly that C can call, `void name(void *rdi)`; USER_CODE is mapped for ring 3 too. Labels are
 * local ones (1:, 2:). */
#define CODE_IN(section, name, text)                                                                            \
  __asm__(".pushsection " section ", \"ax\", @progbits\n.globl " #name "\n.type " #name ", @function\n" #name    \
          ":\n" text "\n.size " #name ", . - " #name "\n.popsection");                                           \
  extern void name(void *)
#define CODE(name, text) CODE_IN(".text", name, text "\n ret")
#define USER_CODE(name, text) CODE_IN(".user", name, text "\n int $0x80")

#define CF (1u << 0)
#define PFLAG (1u << 2)
#define AF (1u << 4)
#define ZF (1u << 6)
#define SF (1u << 7)
#define TF (1u << 8)
#define IF (1u << 9)
#define DF_FLAG (1u << 10)
#define OF_FLAG (1u << 11)
#define RF (1u << 16)
#define AC_FLAG (1u << 18)
#define STATUS (CF | PFLAG | AF | ZF | SF | OF_FLAG)

#endif
