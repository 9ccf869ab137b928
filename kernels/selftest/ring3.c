/* Ring 3: how it is entered and left, what it may not do, the I/O permission bitmap, syscall and sysret, and
 * 32-bit code in compatibility mode. */
#include "selftest.h"

#define SYSCALL_TAKEN 0x200   /* what try_call returns when syscall_entry ended it */
#define IOPL3 0x3000
#define ID 0x200000

extern char user_text[];
#define USER_ADDRESS(code) (USER_VA + ((uint64_t)(code) - (uint64_t)user_text))

uint64_t syscall_rcx, syscall_r11, syscall_rsp, syscall_flags, syscall_cs, syscall_ss;
CODE(syscall_entry,
     "movq %rcx, syscall_rcx(%rip); movq %r11, syscall_r11(%rip); movq %rsp, syscall_rsp(%rip);"
     "movq try_rsp(%rip), %rsp; pushfq; popq syscall_flags(%rip);"
     "movl %cs, %eax; movq %rax, syscall_cs(%rip); movl %ss, %eax; movq %rax, syscall_ss(%rip);"
     "movl $0x200, %eax; jmp try_unwind");

USER_CODE(user_selectors, "movl %cs, %eax; movl %ss, %ecx; pushfq; popq %rdx");
USER_CODE(user_stack_pointer, "movq %rsp, %rax; pushq $7; popq %rcx");
USER_CODE(user_int3, "int3");
USER_CODE(user_popf, "pushq $0x3202; popfq; pushfq; popq %rax");
USER_CODE(user_ud2, "ud2");
USER_CODE(user_int32, "int $0x20");
USER_CODE(user_read, "movb (%rdi), %al");
USER_CODE(user_write, "movb $1, (%rdi)");
USER_CODE(user_jump, "jmp *%rdi");
USER_CODE(user_inb, "movl %edi, %edx; inb %dx, %al");
USER_CODE(user_inw, "movl %edi, %edx; inw %dx, %ax");
USER_CODE(user_outb, "movl %edi, %edx; movb $0x5c, %al; outb %al, %dx");
USER_CODE(user_insb, "movl %edi, %edx; leaq -64(%rsp), %rdi; movl $3, %ecx; rep insb; movl -64(%rsp), %eax");
USER_CODE(user_cli_sti, "cli; pushfq; popq %rax; sti; pushfq; popq %rcx");
USER_CODE(user_cli, "cli");
USER_CODE(user_sti, "sti");
USER_CODE(user_hlt, "hlt");
USER_CODE(user_clts, "clts");
USER_CODE(user_invlpg, "invlpg (%rsp)");
USER_CODE(user_wbinvd, "wbinvd");
USER_CODE(user_lgdt, "lgdt (%rsp)");
USER_CODE(user_lidt, "lidt (%rsp)");
USER_CODE(user_ltr, "movl $0x30, %eax; ltr %ax");
USER_CODE(user_read_cr0, "movq %cr0, %rax");
USER_CODE(user_write_cr3, "movq %rax, %cr3");
USER_CODE(user_read_cr8, "movq %cr8, %rax");
USER_CODE(user_read_dr7, "movq %dr7, %rax");
USER_CODE(user_rdmsr, "movl $0xc0000080, %ecx; rdmsr");
USER_CODE(user_wrmsr, "movl $0xc0000080, %ecx; wrmsr");
USER_CODE(user_swapgs, "swapgs");
USER_CODE(user_sysret, "sysretq");
USER_CODE(user_rdpmc, "xorl %ecx, %ecx; rdpmc");
USER_CODE(user_rdtsc, "rdtsc");
USER_CODE(user_noncanonical, "movabsq $0x8000000000000000, %rax; movb (%rax), %al");
USER_CODE(user_kernel_ss, "movl $0x10, %eax; movl %eax, %ss");
USER_CODE(user_kernel_ds, "movl $0x10, %eax; movl %eax, %ds");
USER_CODE(user_iret_to_kernel, "movl $0x10, %eax; pushq %rax; pushq %rsp; pushq $2; pushq $8; leaq 1f(%rip), %rax;"
                               "pushq %rax; iretq; 1:");
USER_CODE(user_far_to_kernel, "pushq $8; leaq 1f(%rip), %rax; pushq %rax; lretq; 1:");
USER_CODE(user_smsw_sgdt, "smsw %ax; sgdt -16(%rsp); str %cx; sldt %dx");
USER_CODE(user_syscall, "movl $0x1234, %eax; stc; std; syscall; user_syscall_next:");
USER_CODE(user_after_sysret, "movl %cs, %eax; movl %ss, %ecx; pushfq; popq %rdx; movq %r11, %rbx; cld");
USER_CODE(user_gs, "movq %gs:0, %rax; movq %fs:0, %rcx");
extern char user_syscall_next[];

static void test_entry(void) {
  begin("ring3/iret enters, an interrupt gate leaves");
  expect("vector", user_call_as(user_selectors, 5, USER_CS, 2 | IF | CF), DONE);
  expect("cs", seen.frame.rax, USER_CS);
  expect("ss", seen.frame.rcx, USER_SS);
  expect("flags", seen.frame.rdx & (IF | CF | IOPL3), IF | CF);
  expect("argument", seen.frame.rdi, 5);
  expect("saved cs", seen.frame.cs, USER_CS);
  expect("saved ss", seen.frame.ss, USER_SS);
  expect("frame below RSP0", seen.stack, (uint64_t)trap_stack + sizeof trap_stack - sizeof(struct frame));
  expect("user stack", user_call(user_stack_pointer, 0), DONE);
  expect("rsp", seen.frame.rax, USER_STACK);
  expect("saved rsp", seen.frame.rsp, USER_STACK);
  expect("pushed and popped", seen.frame.rcx, 7);
  uint64_t rsp0 = (uint64_t)trap_stack + 8192 + 5, old;
  memcpy(&old, tss + 4, 8);
  memcpy(tss + 4, &rsp0, 8);
  expect("vector", user_call(user_ud2, 0), UD);
  expect("another RSP0, aligned", seen.stack, (rsp0 & ~15UL) - sizeof(struct frame));
  memcpy(tss + 4, &old, 8);
  set_gate(UD, trap_stubs + 16 * UD, 0, 3);
  expect("vector", user_call(user_ud2, 0), UD);
  expect("IST goes before RSP0", seen.stack, (uint64_t)ist_stack[4] - sizeof(struct frame));
  set_gate(UD, trap_stubs + 16 * UD, 0, 0);
  end();

  begin("ring3/gates");
  expect("int3 is allowed", user_call(user_int3, 0), BP);
  expect("rip", seen.frame.rip, USER_ADDRESS(user_int3) + 1);
  expect("int $0x20 is not", user_call(user_int32, 0), GP);
  expect("rip", seen.frame.rip, USER_ADDRESS(user_int32));
  end();

  begin("ring3/popf keeps IF and IOPL");
  expect("no fault", user_call(user_popf, 0), DONE);
  expect("flags", seen.frame.rax & (IOPL3 | IF), 0);
  end();
}

static void test_privileged(void) {
  static const struct { const char *name; void (*code)(void *); unsigned offset, vector; uint64_t error; } cases[] = {
      {"cli", user_cli, 0, GP, 0}, {"sti", user_sti, 0, GP, 0}, {"hlt", user_hlt, 0, GP, 0},
      {"clts", user_clts, 0, GP, 0}, {"invlpg", user_invlpg, 0, GP, 0}, {"wbinvd", user_wbinvd, 0, GP, 0},
      {"lgdt", user_lgdt, 0, GP, 0}, {"lidt", user_lidt, 0, GP, 0}, {"ltr", user_ltr, 5, GP, 0},
      {"mov from cr0", user_read_cr0, 0, GP, 0}, {"mov to cr3", user_write_cr3, 0, GP, 0},
      {"mov from cr8", user_read_cr8, 0, GP, 0}, {"mov from dr7", user_read_dr7, 0, GP, 0},
      {"rdmsr", user_rdmsr, 5, GP, 0}, {"wrmsr", user_wrmsr, 5, GP, 0}, {"swapgs", user_swapgs, 0, GP, 0},
      {"sysret", user_sysret, 0, GP, 0}, {"rdpmc", user_rdpmc, 2, GP, 0},
      {"noncanonical address", user_noncanonical, 10, GP, 0}, {"kernel data as stack", user_kernel_ss, 5, GP, 0x10},
      {"kernel data", user_kernel_ds, 5, GP, 0x10},
      {"ud2", user_ud2, 0, UD, 0},
  };
  begin("ring3/forbidden instructions");
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    expect(cases[i].name, user_call(cases[i].code, 0), cases[i].vector);
    expect(cases[i].name, seen.frame.rip, USER_ADDRESS(cases[i].code) + cases[i].offset);
    expect(cases[i].name, seen.frame.error, cases[i].error);
    expect(cases[i].name, seen.frame.cs, USER_CS);
  }
  end();
  begin("ring3/returns to ring 0");
  expect("by iret", user_call(user_iret_to_kernel, 0), GP);
  expect("by far return", user_call(user_far_to_kernel, 0), GP);
  expect("error", seen.frame.error, 8);
  end();

  begin("ring3/smsw sgdt str sldt are allowed");
  expect("vector", user_call(user_smsw_sgdt, 0), DONE);
  expect("smsw", seen.frame.rax & 0xffff, read_cr0() & 0xffff);
  expect("str", seen.frame.rcx & 0xffff, TSS_SEL);
  end();

  begin("ring3/rdtsc and CR4.TSD");
  expect("allowed", user_call(user_rdtsc, 0), DONE);
  write_cr4(read_cr4() | 4);
  expect("forbidden", user_call(user_rdtsc, 0), GP);
  uint64_t t = rdtsc();
  expect_true("not in ring 0", rdtsc() >= t);
  write_cr4(read_cr4() & ~4UL);
  end();

  begin("ring3/page fault error codes");
  uint64_t va = TEST_VA, pa = SCRATCH;
  memset((void *)pa, 0xcd, PAGE);   /* int $0xcd: no gate for ring 3 */
  map(va, 0, 0);
  expect("read, not present", user_call(user_read, va), PF);
  expect("error", seen.frame.error, 4);
  expect("write, not present", user_call(user_write, va), PF);
  expect("error", seen.frame.error, 6);
  expect("execute, not present", user_call(user_jump, va), PF);
  expect("error", seen.frame.error, 0x14);
  expect("rip", seen.frame.rip, va);
  map(va, pa, P | W);
  expect("read, supervisor", user_call(user_read, va), PF);
  expect("error", seen.frame.error, 5);
  expect("write, supervisor", user_call(user_write, va), PF);
  expect("error", seen.frame.error, 7);
  expect("execute, supervisor", user_call(user_jump, va), PF);
  expect("error", seen.frame.error, 0x15);
  map(va, pa, P | U);
  expect("read", user_call(user_read, va), DONE);
  expect("write, read-only", user_call(user_write, va), PF);
  expect("error", seen.frame.error, 7);
  map(va, pa, P | W | U | NX);
  expect("write", user_call(user_write, va), DONE);
  expect("execute, NX", user_call(user_jump, va), PF);
  expect("error", seen.frame.error, 0x15);
  test_pd[0] &= ~U;
  write_cr3(read_cr3());
  expect("read, directory supervisor", user_call(user_read, va), PF);
  expect("error", seen.frame.error, 5);
  unmap_tests();
  end();
}

static void allow(unsigned port, bool allowed) {
  uint8_t bit = (uint8_t)(1 << (port & 7));
  if (allowed)
    tss[IOPB + port / 8] &= (uint8_t)~bit;
  else
    tss[IOPB + port / 8] |= bit;
}

#define SCRATCH_PORT 0x3ff   /* of the UART */
#define NO_PORT 0x300

static void test_ports(void) {
  begin("ring3/I/O permission bitmap");
  outb(SCRATCH_PORT, 0x77);
  expect("in, forbidden", user_call(user_inb, SCRATCH_PORT), GP);
  expect("error", seen.frame.error, 0);
  expect("rip", seen.frame.rip, USER_ADDRESS(user_inb) + 2);
  expect("out, forbidden", user_call(user_outb, SCRATCH_PORT), GP);
  expect("not written", inb(SCRATCH_PORT), 0x77);
  allow(SCRATCH_PORT, true);
  expect("in, allowed", user_call(user_inb, SCRATCH_PORT), DONE);
  expect("value", seen.frame.rax & 0xff, 0x77);
  expect("out, allowed", user_call(user_outb, SCRATCH_PORT), DONE);
  expect("written", inb(SCRATCH_PORT), 0x5c);
  expect("ins, allowed", user_call(user_insb, SCRATCH_PORT), DONE);
  expect("value", seen.frame.rax & 0xffffff, 0x5c5c5c);
  expect("port below, forbidden", user_call(user_inb, SCRATCH_PORT - 1), GP);
  expect("port above, forbidden", user_call(user_inb, SCRATCH_PORT + 1), GP);
  allow(NO_PORT, true);
  expect("word over two ports, one forbidden", user_call(user_inw, NO_PORT), GP);
  allow(NO_PORT + 1, true);
  expect("word over two ports, both allowed", user_call(user_inw, NO_PORT), DONE);
  expect("nothing there", seen.frame.rax & 0xffff, 0xffff);
  allow(NO_PORT, false);
  allow(NO_PORT + 1, false);
  uint16_t iopb = sizeof tss;
  memcpy(tss + 102, &iopb, 2);
  expect("no bitmap", user_call(user_inb, SCRATCH_PORT), GP);
  iopb = IOPB;
  memcpy(tss + 102, &iopb, 2);
  allow(SCRATCH_PORT, false);
  end();

  begin("ring3/IOPL 3");
  expect("in", user_call_as(user_inb, SCRATCH_PORT, USER_CS, 2 | IOPL3), DONE);
  expect("cli and sti", user_call_as(user_cli_sti, 0, USER_CS, 2 | IOPL3 | IF), DONE);
  expect("IF after cli", seen.frame.rax & IF, 0);
  expect("IF after sti", seen.frame.rcx & IF, IF);
  expect("hlt", user_call_as(user_hlt, 0, USER_CS, 2 | IOPL3), GP);
  end();
}

/* sysretq to arg with flags CF|DF and IF off */
CODE(do_sysret, "movq %rdi, %rcx; movl $0x403, %r11d; movq $0x40100000, %rsp; sysretq");
CODE(do_sysret32, "movq %rdi, %rcx; movl $2, %r11d; movq $0x40100000, %rsp; sysretl");

USER_CODE(user_compat, ".code32; movl %cs, %eax; movl %ss, %ecx; movl %esp, %ebx; pushl $5; movl %esp, %edx; popl %esi;"
                       "int $0x80; .code64");
USER_CODE(user_compat_opcodes,
          ".code32; movl $7, %eax; movl $1, %ebx; movl $2, %ecx; pushal; xorl %eax, %eax; xorl %ebx, %ebx; popal;"
          ".byte 0x40; movb $37, %al; aam; movl %eax, %edx; int $0x80; .code64");
USER_CODE(user_compat_into, ".code32; movb $0x7f, %al; incb %al; into; int $0x80; .code64");
USER_CODE(user_compat_bound, ".code32; pushl $9; pushl $5; movl $4, %eax; bound %eax, (%esp); int $0x80; .code64");
USER_CODE(user_compat_wrap, ".code32; movl $0xffffffff, %eax; leal 5(%eax), %eax; movl $0x80000000, %ecx;"
                            "movl 0xc00ffff8(%ecx), %edx; int $0x80; .code64");
USER_CODE(user_compat_to_long, ".code32; movl $0x12345678, %eax; call 1f; 1: popl %ecx; addl $3f-1b, %ecx;"
                               "pushl $0x2b; pushl %ecx; lretl; .code64; 3: movl %cs, %ebx; shlq $32, %rax;"
                               "int $0x80");

static void test_syscall(void) {
  uint64_t star = rdmsr(MSR_STAR);
  wrmsr(MSR_STAR, (uint64_t)KERNEL_CS << 32 | (uint64_t)USER_CS32 << 48);
  wrmsr(MSR_LSTAR, (uint64_t)syscall_entry);
  wrmsr(MSR_FMASK, 0x400 | 0x200 | 0x100);

  begin("ring3/syscall");
  expect("arrives", user_call_as(user_syscall, 0, USER_CS, 2 | IF | ID), SYSCALL_TAKEN);
  expect("rcx is the next instruction", syscall_rcx, USER_ADDRESS(user_syscall_next));
  expect("r11 is the flags", syscall_r11 & (CF | DF_FLAG | IF), CF | DF_FLAG | IF);
  /* not CF and its like, which QEMU clears whatever the mask says */
  expect("flags masked", syscall_flags & (ID | DF_FLAG | IF), ID);
  expect("cs", syscall_cs, KERNEL_CS);
  expect("ss", syscall_ss, KERNEL_SS);
  expect("rsp is unchanged", syscall_rsp, USER_STACK);
  wrmsr(MSR_FMASK, ID);
  expect("arrives", user_call_as(user_syscall, 0, USER_CS, 2 | ID | IF), SYSCALL_TAKEN);
  cli();
  expect("another mask", syscall_flags & (ID | IF), IF);
  wrmsr(MSR_FMASK, 0x700);
  wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1UL);
  expect("#UD without EFER.SCE", user_call(user_syscall, 0), UD);
  wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
  end();

  begin("ring3/sysret");
  expect("to 64-bit code", try_call(do_sysret, (void *)USER_ADDRESS(user_after_sysret)), DONE);
  expect("cs", seen.frame.rax, USER_CS);
  expect("ss", seen.frame.rcx, USER_SS);
  expect("flags from r11", seen.frame.rdx & (CF | DF_FLAG | IF), CF | DF_FLAG);
  expect("rsp", seen.frame.rsp, USER_STACK);
  expect("to 32-bit code", try_call(do_sysret32, (void *)USER_ADDRESS(user_compat)), DONE);
  expect("cs", seen.frame.rax, USER_CS32);
  expect("saved cs", seen.frame.cs, USER_CS32);
  wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~1UL);
  expect("#UD without EFER.SCE", try_call(do_sysret, (void *)USER_ADDRESS(user_after_sysret)), UD);
  wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1);
  end();
  wrmsr(MSR_STAR, star);

  begin("ring3/FS and GS bases");
  uint64_t va = TEST_VA;
  map(va, SCRATCH, P | U | W);
  *at64(SCRATCH) = 123;
  *at64(SCRATCH + 8) = 456;
  wrmsr(MSR_GS_BASE, va);
  wrmsr(MSR_FS_BASE, va + 8);
  expect("vector", user_call(user_gs, 0), DONE);
  expect("gs", seen.frame.rax, 123);
  expect("fs", seen.frame.rcx, 456);
  wrmsr(MSR_GS_BASE, 0);
  wrmsr(MSR_FS_BASE, 0);
  unmap_tests();
  end();
}

static void test_compat(void) {
  begin("ring3/32-bit code");
  expect("vector", user_call_as(user_compat, 0, USER_CS32, 2), DONE);
  expect("cs", seen.frame.rax, USER_CS32);
  expect("ss", seen.frame.rcx, USER_SS);
  expect("esp", seen.frame.rbx, USER_STACK);
  expect("pushl pushes four bytes", seen.frame.rdx, USER_STACK - 4);
  expect("popl", seen.frame.rsi, 5);
  expect("saved cs", seen.frame.cs, USER_CS32);
  end();

  begin("ring3/32-bit instructions");
  expect("vector", user_call_as(user_compat_opcodes, 0, USER_CS32, 2), DONE);
  expect("pusha, popa", seen.frame.rbx << 8 | seen.frame.rcx, 0x102);
  expect("aam", seen.frame.rdx & 0xffff, 0x0307);
  expect("into", user_call_as(user_compat_into, 0, USER_CS32, 2), OF);
  expect("bound", user_call_as(user_compat_bound, 0, USER_CS32, 2), BR);
  expect("addresses wrap at 4 GiB", user_call_as(user_compat_wrap, 0, USER_CS32, 2), DONE);
  expect("lea", seen.frame.rax, 4);
  end();

  begin("ring3/far return to 64-bit code");
  expect("vector", user_call_as(user_compat_to_long, 0, USER_CS32, 2), DONE);
  expect("cs", seen.frame.rbx, USER_CS);
  expect("64-bit shift", seen.frame.rax, 0x1234567800000000);
  end();
}

void test_ring3(void) {
  test_entry();
  test_privileged();
  test_ports();
  test_syscall();
  test_compat();
}
