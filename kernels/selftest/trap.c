/* Descriptor tables and traps.
 *
 * A trap is, in this order: taken by trap_hook; an interrupt with a handler; the expected end of a try_call;
 * or unexpected. The last writes an epitaph into memory at the symbol `epitaph`, for the host to read, prints
 * it, and powers the machine off. */
#include "selftest.h"

uint64_t gdt[16];
uint8_t tss[104 + 8192 + 8];
uint8_t trap_stack[16384] __attribute__((aligned(16)));
uint8_t ist_stack[8][8192] __attribute__((aligned(16)));
static uint64_t idt[512] __attribute__((aligned(16)));

struct seen seen;
bool (*volatile trap_hook)(struct frame *f, uint64_t cr2);
void (*volatile irq_handler[256])(struct frame *f);
volatile uint64_t irq_count[256];
extern uint64_t try_rsp;
extern char try_unwind[], user_text[];

/* Binary interface to the host; `magic` is written last. */
struct epitaph {
  uint64_t magic;      /* EPITAPH_MAGIC once the rest is valid */
  uint64_t size;
  struct frame frame;  /* registers, vector, error code, rip, … as selftest.h orders them */
  uint64_t cr0, cr2, cr3, cr4, efer;
};
#define EPITAPH_MAGIC 0x4850415449504521UL   /* "!EPITAPH" */
volatile struct epitaph epitaph;

struct pseudo_descriptor { uint16_t limit; uint64_t base; } __attribute__((packed));
void load_gdt(const void *pseudo_descriptor, uint64_t tss_selector);

void irq_none(struct frame *f) { (void)f; }

static void line(const char *name, uint64_t value) {
  print("  ");
  print(name);
  print(" ");
  print_hex(value);
  print("\n");
}

static _Noreturn void die(const struct frame *f, uint64_t cr2) {
  cli();
  struct epitaph e = {.size = sizeof e, .frame = *f, .cr0 = read_cr0(), .cr2 = cr2, .cr3 = read_cr3(),
                      .cr4 = read_cr4(), .efer = rdmsr(MSR_EFER)};
  memcpy((void *)&epitaph, &e, sizeof e);
  epitaph.magic = EPITAPH_MAGIC;
  print("\nunexpected trap\n");
  line("vector", f->vector);
  line("error ", f->error);
  line("rip   ", f->rip);
  line("cr2   ", cr2);
  line("cs    ", f->cs);
  line("rflags", f->rflags);
  line("rsp   ", f->rsp);
  line("ss    ", f->ss);
  line("rax   ", f->rax);
  line("rbx   ", f->rbx);
  line("rcx   ", f->rcx);
  line("rdx   ", f->rdx);
  line("rsi   ", f->rsi);
  line("rdi   ", f->rdi);
  line("rbp   ", f->rbp);
  line("r8    ", f->r8);
  line("r9    ", f->r9);
  line("r10   ", f->r10);
  line("r11   ", f->r11);
  line("r12   ", f->r12);
  line("r13   ", f->r13);
  line("r14   ", f->r14);
  line("r15   ", f->r15);
  line("cr0   ", e.cr0);
  line("cr3   ", e.cr3);
  line("cr4   ", e.cr4);
  line("efer  ", e.efer);
  print("selftest: crashed\n");
  power_off();
}

void trap(struct frame *f);
void trap(struct frame *f) {
  uint64_t cr2 = read_cr2();
  if (trap_hook && trap_hook(f, cr2))
    return;
  if (f->vector >= 32 && irq_handler[f->vector]) {
    irq_count[f->vector]++;
    irq_handler[f->vector](f);
    return;
  }
  if (!try_rsp)
    die(f, cr2);
  seen.frame = *f;
  seen.cr2 = cr2;
  seen.stack = (uint64_t)f;
  f->rax = f->vector;
  f->rip = (uint64_t)try_unwind;
  f->rsp = try_rsp;
  f->cs = KERNEL_CS;
  f->ss = KERNEL_SS;
  f->rflags = 2;
}

void set_gate(unsigned vector, void *handler, unsigned dpl, unsigned ist) {
  uint64_t a = (uint64_t)handler;
  idt[2 * vector] = (a & 0xffff) | KERNEL_CS << 16 | (uint64_t)ist << 32 | (0x8e00UL | dpl << 13) << 32 |
                    (a >> 16 & 0xffff) << 48;
  idt[2 * vector + 1] = a >> 32;
}

void clear_gate(unsigned vector) { idt[2 * vector] &= ~(1UL << 47); }

void set_ist(unsigned ist, void *top) {
  uint64_t a = (uint64_t)top;
  memcpy(tss + 36 + 8 * (ist - 1), &a, 8);
}

void load_idt(unsigned bytes) {
  struct pseudo_descriptor d = {(uint16_t)(bytes - 1), (uint64_t)idt};
  __asm__ volatile("lidt %0" : : "m"(d) : "memory");
}

void trap_init(void) {
  gdt[KERNEL_CS / 8] = 0x00af9b000000ffff;
  gdt[KERNEL_SS / 8] = 0x00cf93000000ffff;
  gdt[USER_CS32 / 8] = 0x00cffb000000ffff;
  gdt[USER_SS / 8] = 0x00cff3000000ffff;
  gdt[USER_CS / 8] = 0x00affb000000ffff;
  gdt[ABSENT_SEL / 8] = 0x00cf13000000ffff;
  gdt[KERNEL_CS32 / 8] = 0x00cf9b000000ffff;
  uint64_t t = (uint64_t)tss, limit = sizeof tss - 1;
  gdt[TSS_SEL / 8] =
      (limit & 0xffff) | (t & 0xffffff) << 16 | 0x89UL << 40 | (limit >> 16) << 48 | (t >> 24 & 0xff) << 56;
  gdt[TSS_SEL / 8 + 1] = t >> 32;
  uint64_t rsp0 = (uint64_t)(trap_stack + sizeof trap_stack);
  memcpy(tss + 4, &rsp0, 8);
  for (unsigned i = 1; i < 8; i++)
    set_ist(i, ist_stack[i] + sizeof ist_stack[i]);
  uint16_t iopb = IOPB;
  memcpy(tss + 102, &iopb, 2);
  memset(tss + IOPB, 0xff, sizeof tss - IOPB);
  struct pseudo_descriptor g = {sizeof gdt - 1, (uint64_t)gdt};
  load_gdt(&g, TSS_SEL);
  for (unsigned v = 0; v < 256; v++)
    set_gate(v, trap_stubs + 16 * v, v == BP || v == OF || v == DONE ? 3 : 0, v == DF ? 1 : 0);
  load_idt(sizeof idt);
}

static void iret_try(void *frame) { iret_to(frame); }

uint64_t user_call_as(void *code, uint64_t arg, uint64_t cs, uint64_t rflags) {
  struct iret_frame f = {
      .rip = USER_VA + ((uint64_t)code - (uint64_t)user_text),
      .cs = cs,
      .rflags = rflags,
      .rsp = USER_STACK,
      .ss = USER_SS,
      .arg = arg,
  };
  return try_call(iret_try, &f);
}

uint64_t user_call(void *code, uint64_t arg) { return user_call_as(code, arg, USER_CS, 2); }

_Noreturn void power_off(void) {
  cli();
  acpi_power_off();
  for (;;)
    __asm__ volatile("cli; hlt");
}
