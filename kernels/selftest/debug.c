/* #DB: single steps by RFLAGS.TF, also over rep, traps, syscall and sysret; breakpoints on execution and data. */
#include "selftest.h"

#define DR6_STEP (1UL << 14)

#define DEBUG_REGISTER(n)                                                                                       \
  static uint64_t read_dr##n(void) {                                                                            \
    uint64_t v;                                                                                                 \
    __asm__ volatile("movq %%dr" #n ", %0" : "=r"(v));                                                           \
    return v;                                                                                                   \
  }                                                                                                             \
  static void write_dr##n(uint64_t v) { __asm__ volatile("movq %0, %%dr" #n : : "r"(v)); }
DEBUG_REGISTER(0)
DEBUG_REGISTER(1)
DEBUG_REGISTER(2)
DEBUG_REGISTER(3)
DEBUG_REGISTER(6)
DEBUG_REGISTER(7)

extern char user_text[];
#define USER_ADDRESS(code) (USER_VA + ((uint64_t)(code) - (uint64_t)user_text))

static struct { uint64_t rip, dr6, cs; } hits[64];
static unsigned n_hits;

static bool record(struct frame *f, uint64_t cr2) {
  (void)cr2;
  if (f->vector != DB)
    return false;
  if (n_hits < 64) {
    hits[n_hits].rip = f->rip;
    hits[n_hits].dr6 = read_dr6();
    hits[n_hits].cs = f->cs;
  }
  n_hits++;
  write_dr6(0xffff0ff0);
  f->rflags |= RF;   /* go on past a breakpoint on execution */
  return true;
}

static void start(void) {
  n_hits = 0;
  memset(hits, 0, sizeof hits);
  write_dr6(0xffff0ff0);
  trap_hook = record;
}

#define STEP_ON "pushfq; orq $0x100, (%rsp); popfq;"
#define STEP_OFF "pushfq; andq $~0x100, (%rsp); popfq;"

CODE(step_plain, STEP_ON "step_plain_0: nop; step_plain_1: incl %eax; step_plain_2: jmp step_plain_3; nop;"
     "step_plain_3: " STEP_OFF "step_plain_end: nop");
CODE(step_rep, "leaq -256(%rsp), %rdi; movl $3, %ecx; xorl %eax, %eax;" STEP_ON
     "step_rep_0: nop; step_rep_1: rep stosb; step_rep_2: " STEP_OFF);
CODE(step_int, STEP_ON "step_int_0: nop; step_int_1: int $0x92; step_int_2: nop;" STEP_OFF);
CODE(call_me, "nop; call_me_1: nop; call_me_2: nop");
USER_CODE(user_steps, "nop; incl %eax; pushq %rax; popq %rax; cpuid");
USER_CODE(user_step_syscall, "nop; user_step_syscall_at: syscall; user_step_syscall_next: nop");
extern char step_plain_0[], step_plain_1[], step_plain_2[], step_plain_3[], step_plain_end[];
extern char step_rep_0[], step_rep_1[], step_rep_2[], step_int_1[], step_int_2[], call_me_1[];
extern char user_step_syscall_at[], user_step_syscall_next[];

extern void syscall_entry(void *);
CODE(sysret_stepping, "movq %rdi, %rcx; movl $0x102, %r11d; movq $0x40100000, %rsp; sysretq");

static void test_steps(void) {
  begin("debug/single step");
  start();
  expect("no other trap", try_call(step_plain, NULL), NO_FAULT);
  static char *const rips[] = {step_plain_1, step_plain_2, step_plain_3};
  for (unsigned i = 0; i < 3; i++) {
    expect("rip", hits[i].rip, (uint64_t)rips[i]);
    expect("DR6.BS", hits[i].dr6 & (DR6_STEP | 15), DR6_STEP);
  }
  expect("number", n_hits, 6);
  expect("last is behind popf", hits[5].rip, (uint64_t)step_plain_end);
  end();

  begin("debug/single step over each iteration of rep");
  start();
  expect("no other trap", try_call(step_rep, NULL), NO_FAULT);
  expect("nop", hits[0].rip, (uint64_t)step_rep_1);
  expect("first of three", hits[1].rip, (uint64_t)step_rep_1);
  expect("second", hits[2].rip, (uint64_t)step_rep_1);
  expect("last", hits[3].rip, (uint64_t)step_rep_2);
  expect("number", n_hits, 7);
  end();

  begin("debug/handlers run without TF");
  start();
  irq_handler[0x92] = irq_none;
  expect("no other trap", try_call(step_int, NULL), NO_FAULT);
  irq_handler[0x92] = NULL;
  expect("before int", hits[0].rip, (uint64_t)step_int_1);
  bool outside = true;
  for (unsigned i = 0; i < n_hits && i < 64; i++)
    outside &= hits[i].rip < (uint64_t)trap_stubs || hits[i].rip > (uint64_t)trap_stubs + 4096;
  expect_true("no step in the stub", outside);
  end();

  begin("debug/single step in ring 3");
  start();
  expect("ends", user_call_as(user_steps, 0, USER_CS, 2 | TF), DONE);
  expect("number", n_hits, 5);
  expect("first rip", hits[0].rip, USER_ADDRESS(user_steps) + 1);
  expect("cs", hits[0].cs, USER_CS);
  expect("flags in the last frame", seen.frame.rflags & TF, TF);
  end();

  begin("debug/single step to syscall and from sysret");
  uint64_t star = rdmsr(MSR_STAR);
  wrmsr(MSR_STAR, (uint64_t)KERNEL_CS << 32 | (uint64_t)USER_CS32 << 48);
  wrmsr(MSR_LSTAR, (uint64_t)syscall_entry);
  wrmsr(MSR_FMASK, 0x700);
  start();
  expect("syscall", user_call_as(user_step_syscall, 0, USER_CS, 2 | TF), 0x200);
  expect("FMASK clears TF before a step in the kernel", n_hits, 1);
  expect("rip", hits[0].rip, USER_ADDRESS(user_step_syscall_at));
  start();
  expect("sysret", try_call(sysret_stepping, (void *)USER_ADDRESS(user_steps)), DONE);
  expect("in ring 3", hits[0].cs, USER_CS);
  expect_true("steps all", n_hits >= 5);
  expect("last", hits[n_hits - 1].rip, USER_ADDRESS(user_steps) + 7);
  wrmsr(MSR_STAR, star);
  trap_hook = NULL;
  end();
}

CODE(write_watched, "movl $1, watched_cell(%rip); write_watched_end: nop");
CODE(read_watched, "movl watched_cell(%rip), %eax; read_watched_end: nop");
extern char write_watched_end[], read_watched_end[];
__asm__(".pushsection .data; .align 16; .globl watched_cell; watched_cell: .quad 0, 0; .popsection");
extern uint64_t watched_cell[2];

static void test_registers(void) {
  begin("debug/registers");
  write_dr0(0x1000);
  write_dr1(0x2000);
  write_dr2(0x3000);
  write_dr3(0x4000);
  expect("DR0", read_dr0(), 0x1000);
  expect("DR1", read_dr1(), 0x2000);
  expect("DR2", read_dr2(), 0x3000);
  expect("DR3", read_dr3(), 0x4000);
  write_dr6(0xffff0ff0);
  expect("DR6", read_dr6() & 0xefff, 0x0ff0);
  expect("DR7", read_dr7() & 0xffff00ff, 0);
  end();

  begin("debug/breakpoint on execution");
  start();
  write_dr0((uint64_t)call_me_1);
  write_dr7(0x400 | 2);
  expect("goes on with RF", try_call(call_me, NULL), NO_FAULT);
  expect("number", n_hits, 1);
  expect("before the instruction", hits[0].rip, (uint64_t)call_me_1);
  expect("DR6", hits[0].dr6 & 0xf, 1);
  try_call(call_me, NULL);
  expect("again", n_hits, 2);
  write_dr7(0x400);
  try_call(call_me, NULL);
  expect("off", n_hits, 2);
  end();

  begin("debug/breakpoint on data");
  start();
  write_dr1((uint64_t)watched_cell);
  write_dr7(0x400 | 8 | 0xdUL << 20);   /* writes, four bytes */
  try_call(read_watched, NULL);
  expect("reads do not count", n_hits, 0);
  try_call(write_watched, NULL);
  expect("writes do", n_hits, 1);
  expect("after the instruction", hits[0].rip, (uint64_t)write_watched_end);
  expect("DR6", hits[0].dr6 & 0xf, 2);
  watched_cell[1] = 5;
  expect("neighbours do not", n_hits, 1);
  write_dr7(0x400 | 8 | 0xfUL << 20);   /* reads, too */
  try_call(read_watched, NULL);
  expect("reads", n_hits, 2);
  expect("after the instruction", hits[1].rip, (uint64_t)read_watched_end);
  write_dr7(0x400);
  try_call(write_watched, NULL);
  expect("off", n_hits, 2);
  trap_hook = NULL;
  end();
  write_dr0(0), write_dr1(0), write_dr2(0), write_dr3(0);
}

void test_debug(void) {
  test_steps();
  test_registers();
}
