/* Exceptions in ring 0: vector, error code, saved instruction pointer, CR2, and the stack they arrive on. */
#include "selftest.h"

/* A function whose faulting instruction is at the label name_at. */
#define FAULTY(name, before, at, after)                                                                         \
  CODE(name, before "\n" #name "_at: " at "\n" after);                                                          \
  extern char name##_at[]

FAULTY(divide_by_zero, "xorl %eax, %eax; xorl %edx, %edx; xorl %ecx, %ecx", "divl %ecx", "");
FAULTY(divide_overflow, "movq $1, %rdx; xorl %eax, %eax; movl $1, %ecx", "divq %rcx", "");
FAULTY(idivide_overflow, "movl $0x80, %eax; movb $1, %cl; movw $0x0100, %ax", "idivb %cl", "");
FAULTY(idivide_minimum, "movl $0x80000000, %eax; cltd; movl $-1, %ecx", "idivl %ecx", "");
FAULTY(breakpoint, "", "int3", "");
FAULTY(software_3, "", ".byte 0xcd, 3", "");
FAULTY(software_4, "", "int $4", "");
FAULTY(undefined, "", "ud2", "");
FAULTY(undefined_push_es, "", ".byte 0x06", "");
FAULTY(undefined_into, "", ".byte 0xce", "");
FAULTY(undefined_aam, "", ".byte 0xd4, 0x0a", "");
FAULTY(undefined_far_call, "", ".byte 0x9a, 0, 0, 0, 0, 0, 0", "");
FAULTY(undefined_pusha, "", ".byte 0x60", "");
FAULTY(undefined_mov_cr1, "", ".byte 0x0f, 0x20, 0xc8", "");
FAULTY(undefined_lea_register, "", ".byte 0x8d, 0xc0", "");
FAULTY(undefined_mov_cs, "", ".byte 0x8e, 0xc8", "");
FAULTY(read_noncanonical, "movabsq $0x8000000000000000, %rax", "movq (%rax), %rcx", "");
FAULTY(write_noncanonical, "movabsq $0x0000800000000000, %rax", "movq %rcx, (%rax)", "");
FAULTY(selector_beyond, "movl $0x80, %eax", "movl %eax, %ds", "");
FAULTY(selector_absent, "movl $0x40, %eax", "movl %eax, %ds", "");
FAULTY(stack_absent, "movl $0x40, %eax", "movl %eax, %ss", "");
FAULTY(stack_is_code, "movl $0x08, %eax", "movl %eax, %ss", "");
FAULTY(load_busy_task, "movl $0x30, %eax", "ltr %ax", "");
FAULTY(load_bad_task, "movl $0x10, %eax", "ltr %ax", "");
FAULTY(far_return_bad, "pushq $0x10; leaq 1f(%rip), %rax; pushq %rax", "lretq", "1:");
FAULTY(software_beyond, "", "int $0x90", "");
FAULTY(software_absent, "", "int $0x91", "");
FAULTY(coprocessor_off, "movq %cr0, %rax; orq $8, %rax; movq %rax, %cr0", "fnop", "");
FAULTY(sse_task_switched, "movq %cr0, %rax; orq $8, %rax; movq %rax, %cr0", "xorps %xmm0, %xmm0", "");
FAULTY(sse_off, "movq %cr4, %rax; andq $~0x200, %rax; movq %rax, %cr4", "xorps %xmm0, %xmm0", "");
FAULTY(xsetbv_off, "xorl %ecx, %ecx; xorl %edx, %edx; movl $7, %eax", "xsetbv", "");

/* QEMU says 16 * vector in the error codes of bad IDT entries, processors 8 * vector. */
#define ANY_ERROR ~0UL

static void check_fault(const char *name, void (*f)(void *), char *rip, unsigned vector, uint64_t error) {
  begin(name);
  memset(&seen, 0, sizeof seen);
  expect("vector", try_call(f, NULL), vector);
  expect("rip", seen.frame.rip, (uint64_t)rip);
  if (error != ANY_ERROR)
    expect("error code", seen.frame.error, error);
  expect("cs", seen.frame.cs, KERNEL_CS);
  expect("ss", seen.frame.ss, KERNEL_SS);
  end();
}
#define FAULT(name, f, vector, error) check_fault("fault/" name, f, f##_at, vector, error)

/* #PF */

#define RSVD 8

static uint64_t access_cr2;   /* if it is not the address itself */
static void page_fault(const char *name, void (*f)(void *), uint64_t va, uint64_t error) {
  memset(&seen, 0, sizeof seen);
  expect(name, try_call(f, (void *)va), error == NO_FAULT ? NO_FAULT : PF);
  if (error == NO_FAULT)
    return;
  /* P with RSVD: processors set it, QEMU 7.2 does not */
  uint64_t ignored = error & RSVD ? P : 0;
  expect("error code", seen.frame.error & ~ignored, error & ~ignored);
  expect("cr2", seen.cr2, access_cr2 ? access_cr2 : va);
}

CODE(read_byte, "movb (%rdi), %al");
CODE(read_quad, "movq (%rdi), %rax");
CODE(write_byte, "movb $1, (%rdi)");
CODE(write_quad, "movabsq $0x1111111111111111, %rax; movq %rax, (%rdi)");
CODE(modify_byte, "incb (%rdi)");
CODE(jump_there, "jmp *%rdi");

static void test_page_faults(void) {
  uint64_t va = TEST_VA, pa = SCRATCH;
  *at8(pa) = 0xc3;   /* ret */
  begin("fault/page fault error codes");
  map(va, 0, 0);
  page_fault("read, not present", read_byte, va, 0);
  page_fault("write, not present", write_byte, va, 2);
  page_fault("execute, not present", jump_there, va, 0x10);
  map(va, pa, P);
  page_fault("read, read-only", read_byte, va, NO_FAULT);
  page_fault("execute, read-only", jump_there, va, NO_FAULT);
  page_fault("write, read-only", write_byte, va, 3);
  page_fault("read-modify-write, read-only", modify_byte, va, 3);
  map(va, pa, P | W | NX);
  page_fault("write, NX", write_byte, va, NO_FAULT);
  *at8(pa) = 0xc3;
  page_fault("execute, NX", jump_there, va, 0x11);
  map(va, pa | 1UL << 51, P | W);
  page_fault("read, reserved bit", read_byte, va, 9);
  page_fault("write, reserved bit", write_byte, va, 0xb);
  page_fault("execute, reserved bit", jump_there, va, 0x19);
  map(va, 0, 0);
  end();

  begin("fault/rights of upper levels");
  volatile uint64_t *pde = &test_pd[0];
  map(va, pa, P | W);
  *pde &= ~W;
  write_cr3(read_cr3());
  page_fault("write, directory read-only", write_byte, va, 3);
  page_fault("read, directory read-only", read_byte, va, NO_FAULT);
  *pde |= W | NX;
  write_cr3(read_cr3());
  *at8(pa) = 0xc3;
  page_fault("execute, directory NX", jump_there, va, 0x11);
  *pde = (*pde & ~NX) | 1UL << 51;
  write_cr3(read_cr3());
  page_fault("read, directory with reserved bit", read_byte, va, 9);
  *pde &= ~(1UL << 51 | P);
  write_cr3(read_cr3());
  page_fault("read, directory not present", read_byte, va, 0);
  unmap_tests();
  end();

  begin("fault/accesses across a page end");
  map(va, pa, P | W);
  *at64(pa + PAGE - 8) = 0x2222222222222222;
  access_cr2 = va + PAGE;
  page_fault("read, second page not present", read_quad, va + PAGE - 3, 0);
  page_fault("write, second page not present", write_quad, va + PAGE - 3, 2);
  expect("nothing written", *at64(pa + PAGE - 8), 0x2222222222222222);
  map(va + PAGE, pa + PAGE, P);
  page_fault("write, second page read-only", write_quad, va + PAGE - 3, 3);
  expect("nothing written", *at64(pa + PAGE - 8), 0x2222222222222222);
  access_cr2 = 0;
  map(va + PAGE, pa + PAGE, P | W);
  map(va, pa, 0);
  page_fault("read, first page not present", read_quad, va + PAGE - 3, 0);
  map(va, pa, P | W);
  page_fault("write, both present", write_quad, va + PAGE - 3, NO_FAULT);
  expect("first part", *at64(pa + PAGE - 8), 0x1111112222222222);
  expect("second part", *at64(pa + PAGE) & 0xffffffffff, 0x1111111111);
  end();

  begin("fault/instruction across a page end");
  static const uint8_t code[] = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xc3};   /* movabs $…, %rax; ret */
  for (unsigned cut = 1; cut < 10; cut++) {
    uint64_t start = va + PAGE - cut;
    memcpy((void *)(pa + PAGE - cut), code, sizeof code);
    map(va, pa, P);
    map(va + PAGE, pa + PAGE, P);
    uint64_t r;
    __asm__ volatile("call *%1" : "=a"(r) : "r"(start) : "memory");
    expect("runs", r, 0x0807060504030201);
    access_cr2 = va + PAGE;
    map(va + PAGE, 0, 0);
    page_fault("second page not present", jump_there, start, 0x10);
    expect("rip", seen.frame.rip, start);
    map(va + PAGE, pa + PAGE, P | NX);
    page_fault("second page NX", jump_there, start, 0x11);
    expect("rip", seen.frame.rip, start);
    access_cr2 = 0;
  }
  unmap_tests();
  end();
}

/* Handlers on chosen stacks. Each exception's frame lies right below the top of its IST stack. */

#define FRAME_BYTES sizeof(struct frame)

static uint64_t stack_of[32], rsp_of[32];
static bool nest(struct frame *f, uint64_t cr2) {
  (void)cr2;
  if (f->vector != UD && f->vector != BP && f->vector != GP)
    return false;
  stack_of[f->vector] = (uint64_t)f;
  rsp_of[f->vector] = f->rsp;
  if (f->vector == UD) {
    f->rip += 2;
    __asm__ volatile("int3");
  } else if (f->vector == BP && stack_of[GP] == 0) {
    uint64_t scratch;
    __asm__ volatile("movabsq $0x8000000000000000, %0; movq (%0), %0" : "=r"(scratch));
  } else if (f->vector == GP) {
    f->rip += 3;
  }
  return true;
}

CODE(undefined_then_return, "ud2");
CODE(push_on_nothing, "movabsq $0x8000001000, %rsp; pushq $0; push_on_nothing_end: nop");
CODE(two_faults, "movabsq $0x8000001000, %rsp; ud2");

static void test_stacks(void) {
  begin("fault/stack without IST");
  memset(stack_of, 0, sizeof stack_of);
  trap_hook = nest;
  set_gate(BP, trap_stubs + 16 * BP, 3, 0);
  expect("returns", try_call(undefined_then_return, NULL), NO_FAULT);
  for (unsigned v = UD; v <= GP; v += GP - UD)
    expect("frame is below the aligned stack pointer", stack_of[v], (rsp_of[v] & ~15UL) - FRAME_BYTES);
  end();

  begin("fault/nested IST stacks");
  memset(stack_of, 0, sizeof stack_of);
  set_gate(UD, trap_stubs + 16 * UD, 0, 2);
  set_gate(BP, trap_stubs + 16 * BP, 3, 7);
  set_gate(GP, trap_stubs + 16 * GP, 0, 4);
  expect("returns", try_call(undefined_then_return, NULL), NO_FAULT);
  expect("IST2", stack_of[UD], (uint64_t)ist_stack[3] - FRAME_BYTES);
  expect("IST7", stack_of[BP], (uint64_t)ist_stack[7] + sizeof ist_stack[7] - FRAME_BYTES);
  expect("IST4", stack_of[GP], (uint64_t)ist_stack[5] - FRAME_BYTES);
  set_ist(2, ist_stack[2] + 4000 + 5);   /* the processor aligns it */
  expect("returns", try_call(undefined_then_return, NULL), NO_FAULT);
  expect("unaligned IST2", stack_of[UD], (((uint64_t)ist_stack[2] + 4005) & ~15UL) - FRAME_BYTES);
  set_ist(2, ist_stack[3]);
  trap_hook = NULL;
  set_gate(UD, trap_stubs + 16 * UD, 0, 0);
  set_gate(BP, trap_stubs + 16 * BP, 3, 0);
  set_gate(GP, trap_stubs + 16 * GP, 0, 0);
  end();

  begin("fault/double fault");
  extern char push_on_nothing_end[];
  map(TEST_VA, 0, 0);
  expect("push without a stack", try_call(push_on_nothing, NULL), DF);
  expect("error code", seen.frame.error, 0);
  expect("rsp", seen.frame.rsp, 0x8000001000);
  expect("cr2", seen.cr2, 0x8000000ff8);
  expect("arrives on IST1", seen.stack, (uint64_t)ist_stack[2] - FRAME_BYTES);
  expect("#UD without a stack", try_call(two_faults, NULL), DF);
  expect("rip", *(uint16_t *)seen.frame.rip, 0x0b0f);
  end();
}

void test_fault(void) {
  FAULT("#DE by zero", divide_by_zero, DE, 0);
  FAULT("#DE quotient too large", divide_overflow, DE, 0);
  FAULT("#DE signed quotient too large", idivide_overflow, DE, 0);
  FAULT("#DE smallest by -1", idivide_minimum, DE, 0);
  check_fault("fault/#BP int3", breakpoint, breakpoint_at + 1, BP, 0);
  check_fault("fault/#BP int $3", software_3, software_3_at + 2, BP, 0);
  check_fault("fault/#OF int $4", software_4, software_4_at + 2, OF, 0);
  FAULT("#UD ud2", undefined, UD, 0);
  FAULT("#UD push es in 64-bit mode", undefined_push_es, UD, 0);
  FAULT("#UD into in 64-bit mode", undefined_into, UD, 0);
  FAULT("#UD aam in 64-bit mode", undefined_aam, UD, 0);
  FAULT("#UD far call in 64-bit mode", undefined_far_call, UD, 0);
  FAULT("#UD pusha in 64-bit mode", undefined_pusha, UD, 0);
  FAULT("#UD mov from cr1", undefined_mov_cr1, UD, 0);
  FAULT("#UD lea of a register", undefined_lea_register, UD, 0);
  FAULT("#UD mov to cs", undefined_mov_cs, UD, 0);
  FAULT("#UD xsetbv without OSXSAVE", xsetbv_off, UD, 0);
  FAULT("#NM x87 with TS", coprocessor_off, NM, 0);
  FAULT("#NM SSE with TS", sse_task_switched, NM, 0);
  write_cr0(read_cr0() & ~8UL);
  uint64_t cr4 = read_cr4();
  FAULT("#UD SSE without OSFXSR", sse_off, UD, 0);
  write_cr4(cr4);
  FAULT("#GP noncanonical read", read_noncanonical, GP, 0);
  FAULT("#GP noncanonical write", write_noncanonical, GP, 0);
  FAULT("#GP selector beyond the GDT", selector_beyond, GP, 0x80);
  FAULT("#GP code as stack", stack_is_code, GP, 0x08);
  FAULT("#GP task register, busy task", load_busy_task, GP, 0x30);
  FAULT("#GP task register, not a task", load_bad_task, GP, 0x10);
  FAULT("#GP far return to data", far_return_bad, GP, 0x10);
  FAULT("#NP data segment", selector_absent, NP, 0x40);
  FAULT("#SS stack segment", stack_absent, SS, 0x40);
  load_idt(16 * 0x90);
  FAULT("#GP vector beyond the IDT", software_beyond, GP, ANY_ERROR);
  load_idt(4096);
  clear_gate(0x91);
  FAULT("#NP gate not present", software_absent, NP, ANY_ERROR);
  set_gate(0x91, trap_stubs + 16 * 0x91, 0, 0);
  __asm__ volatile("movl %0, %%ds; movl %0, %%es" : : "r"(0));
  test_page_faults();
  test_stacks();
}
