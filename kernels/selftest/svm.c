/* AMD SVM (APM vol. 2 chapter 15): a guest in long mode under nested paging, entered and left. */
#include "selftest.h"

#define VMCB (SCRATCH + 0x100000)
#define HOST (SCRATCH + 0x101000)       /* what VMSAVE keeps of the host */
#define HOST_SAVE (SCRATCH + 0x102000)  /* VM_HSAVE_PA */
#define NESTED (SCRATCH + 0x110000)     /* nested page tables */
#define GUEST (SCRATCH + 0x200000)      /* 256 KiB of guest memory, guest physical 0 */
#define GUEST_PAGES 64

#define EXIT_INTR 0x60
#define EXIT_CPUID 0x72
#define EXIT_HLT 0x78
#define EXIT_VMMCALL 0x81
#define EXIT_NPF 0x400
#define EXIT_UD (0x40 + UD)

#define V8(o) (*at8(VMCB + (o)))
#define V16(o) (*at16(VMCB + (o)))
#define V32(o) (*at32(VMCB + (o)))
#define V64(o) (*at64(VMCB + (o)))
#define INTERCEPT3 0x0c
#define EXIT_CODE V64(0x70)
#define EXIT_INFO1 V64(0x78)
#define EXIT_INFO2 V64(0x80)
#define GUEST_RFLAGS V64(0x570)
#define GUEST_RIP V64(0x578)
#define GUEST_RSP V64(0x5d8)
#define GUEST_RAX V64(0x5f8)

void svm_enter(uint64_t vmcb, uint64_t host);
__asm__(".pushsection .text\n.globl svm_enter\nsvm_enter:\n"
        "pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15; pushq %rsi\n"
        "clgi; movq %rsi, %rax; vmsave; movq %rdi, %rax; vmload; vmrun; vmsave; popq %rax; vmload; stgi\n"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx; ret\n.popsection");

CODE(guest_calls, "movq $0x1234, %rax; 1: incq %rax; vmmcall; jmp 1b");
/* only rax and rsp are kept for the guest over an exit */
CODE(guest_touches, "movl $0x5000000, %eax; movq (%rax), %rax; vmmcall");
CODE(guest_writes, "movq $0x4321, 0x8000; movl $0x5001000, %ebx; movq $1, 8(%rbx)");
CODE(guest_spins, "xorl %eax, %eax; 1: incq %rax; jmp 1b");
CODE(guest_instructions, "movl $7, %eax; cpuid; nop; hlt; ud2");
CODE(guest_state, "movq %cr0, %rax; vmmcall");
CODE(do_vmrun, "xorl %eax, %eax; vmrun");

static void prepare(void (*code)(void *)) {
  static const uint16_t selector[4] = {0x10, 8, 0x10, 0x10}, attributes[4] = {0xc93, 0xa9b, 0xc93, 0xc93};
  memset((void *)VMCB, 0, PAGE);
  memset((void *)HOST, 0, 2 * PAGE);
  memset((void *)NESTED, 0, 4 * PAGE);
  memset((void *)GUEST, 0, GUEST_PAGES * PAGE);
  *at64(NESTED) = (NESTED + PAGE) | P | W | U;
  *at64(NESTED + PAGE) = (NESTED + 2 * PAGE) | P | W | U;
  *at64(NESTED + 2 * PAGE) = (NESTED + 3 * PAGE) | P | W | U;
  for (uint64_t i = 0; i < GUEST_PAGES; i++)
    *at64(NESTED + 3 * PAGE + 8 * i) = (GUEST + i * PAGE) | P | W | U;
  /* the guest's own tables, at 0x10000: 128 MiB in large pages */
  *at64(GUEST + 0x10000) = 0x11000 | P | W | U;
  *at64(GUEST + 0x11000) = 0x12000 | P | W | U;
  for (uint64_t i = 0; i < 64; i++)
    *at64(GUEST + 0x12000 + 8 * i) = i << 21 | P | W | U | PS;
  memcpy((void *)(GUEST + 0x1000), (void *)code, 256);
  V32(INTERCEPT3) = 1u << 24;                /* HLT */
  V32(0x10) = 3;                             /* VMRUN, VMMCALL */
  V32(0x58) = 1;                             /* ASID */
  V8(0x5c) = 1;                              /* flush */
  V64(0x90) = 1;                             /* nested paging */
  V64(0xb0) = NESTED;
  for (unsigned i = 0; i < 4; i++) {         /* ES CS SS DS */
    V16(0x400 + 16 * i) = selector[i];
    V16(0x402 + 16 * i) = attributes[i];
    V32(0x404 + 16 * i) = ~0u;
  }
  V64(0x4d0) = 0x1500;                       /* EFER: SVME LMA LME */
  V64(0x548) = 0x620;                        /* CR4 */
  V64(0x550) = 0x10000;                      /* CR3 */
  V64(0x558) = 0x80010013;                   /* CR0 */
  V64(0x560) = 0x400;                        /* DR7 */
  V64(0x568) = 0xffff0ff0;                   /* DR6 */
  V64(0x668) = 0x0007040600070406;           /* guest PAT */
  GUEST_RFLAGS = 2;
  GUEST_RIP = 0x1000;
  GUEST_RSP = 0x8000;
}

static uint64_t run(void) {
  svm_enter(VMCB, HOST);
  V8(0x5c) = 0;
  return EXIT_CODE;
}

static void handler(struct frame *f) {
  (void)f;
  lapic_eoi();
}

void test_svm(void) {
  bool svm = cpuid(0x80000001, 0).ecx >> 2 & 1 && cpuid(0x8000000a, 0).edx & 1;

  begin("svm/off until EFER.SVME");
  expect("vmrun", try_call(do_vmrun, NULL), UD);
  if (svm) {
    expect("not locked", rdmsr(MSR_VM_CR) & 0x10, 0);
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1 << 12);
    wrmsr(MSR_VM_HSAVE_PA, HOST_SAVE);
    expect("EFER.SVME", rdmsr(MSR_EFER) >> 12 & 1, 1);
    expect("VM_HSAVE_PA", rdmsr(MSR_VM_HSAVE_PA), HOST_SAVE);
  }
  end();

  begin("svm/VMMCALL");
  if (svm) {
    prepare(guest_calls);
    uint64_t cr3 = read_cr3();
    for (uint64_t i = 1; i <= 100; i++) {
      expect("exit", run(), EXIT_VMMCALL);
      expect("rax", GUEST_RAX, 0x1234 + i);
      GUEST_RIP += 3;
    }
    expect("host cr3", read_cr3(), cr3);
  }
  end();

  begin("svm/guest state");
  if (svm) {
    prepare(guest_state);
    expect("exit", run(), EXIT_VMMCALL);
    expect("cr0", GUEST_RAX, 0x80010013);
    expect("rip", GUEST_RIP > 0x1000 && GUEST_RIP < 0x1040, 1);
    expect("cpl", V8(0x4cb), 0);
  }
  end();

  begin("svm/nested page fault");
  if (svm) {
    prepare(guest_touches);
    expect("exit", run(), EXIT_NPF);
    expect("guest physical address", EXIT_INFO2, 0x5000000);
    expect("error", EXIT_INFO1 & 0x1f, 4);
    expect("rip", GUEST_RIP, 0x1005);
    /* and on with the page there */
    *at64(NESTED + 2 * PAGE + 8 * (0x5000000 >> 21)) = (NESTED + 3 * PAGE) | P | W | U;
    *at64(GUEST) = 0xfeed;
    V8(0x5c) = 1;
    expect("exit", run(), EXIT_VMMCALL);

    expect("value", GUEST_RAX, 0xfeed);
    prepare(guest_writes);
    expect("exit", run(), EXIT_NPF);
    expect("guest physical address", EXIT_INFO2, 0x5001008);
    expect("error", EXIT_INFO1 & 0x1f, 6);
    expect("guest memory", *at64(GUEST + 0x8000), 0x4321);
  }
  end();

  begin("svm/intercepted instructions");
  if (svm) {
    prepare(guest_instructions);
    V32(INTERCEPT3) |= 1 << 18;      /* CPUID */
    V32(8) = 1 << UD;                /* #UD */
    expect("cpuid", run(), EXIT_CPUID);
    expect("rax", GUEST_RAX, 7);
    GUEST_RIP += 2;
    expect("hlt", run(), EXIT_HLT);
    GUEST_RIP = 0x1000 + 5 + 2 + 1 + 1;
    expect("ud2", run(), EXIT_UD);
    expect("rip", GUEST_RIP, 0x1009);
  }
  end();

  begin("svm/interrupt of the host");
  if (svm) {
    irq_handler[0x68] = handler;
    irq_count[0x68] = 0;
    prepare(guest_spins);
    V32(INTERCEPT3) |= 1;            /* INTR */
    V8(0x60 + 3) = 1;                /* V_INTR_MASKING: the host's IF decides */
    lapic_write(LAPIC_DIVIDE, 0xb);
    lapic_write(LAPIC_TIMER, 0x68);
    for (uint64_t i = 1; i <= 10; i++) {
      __asm__ volatile("clgi");      /* or a slow host takes the interrupt before the guest runs */
      lapic_write(LAPIC_INITIAL, 200000);
      sti();
      uint64_t code = run();
      if (code == EXIT_INTR)
        expect_true("taken by the host after stgi", wait_for(&irq_count[0x68], i));
      cli();
      if (irq_count[0x68] < i) {
        expect("exit", code, EXIT_INTR);
        break;
      }
    }
    expect("number", irq_count[0x68], 10);
    expect_true("the guest ran", GUEST_RAX > 0);
    lapic_write(LAPIC_TIMER, LVT_MASKED);
    irq_handler[0x68] = NULL;
  }
  end();
  if (svm)
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~(1UL << 12));
}
