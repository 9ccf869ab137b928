/* do=WHAT: what a machine must survive, and long deterministic workloads.
 *
 *   triple            no IDT: the first trap is a triple fault
 *   fault-delivering  the IDT itself is not mapped
 *   hang              spins with interrupts off
 *   deadlock          halts with interrupts off
 *   idle-forever      halts with interrupts on and nothing to come
 *   unmapped          reads and writes physical addresses where nothing is
 *   pagefault         a page fault that nobody expects: epitaph
 *   pagetables        edits page tables without INVLPG, and folds what it sees into a checksum
 *   ticks             folds every kind of event and the time at which it happens into a checksum
 *   bench=NAME        bench.c
 *
 * The checksums depend on time and on what the TLB remembers: they are the same in every run of one
 * deterministic machine, however the run is cut, and mean nothing between machines. */
#include "selftest.h"

static uint64_t checksum = 0xcbf29ce484222325;
static void fold(uint64_t v) { checksum = (checksum ^ v) * 0x100000001b3 ^ checksum >> 29; }

static uint64_t random_state = 0x9e3779b97f4a7c15;
static uint64_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static void show(const char *what, uint64_t step) {
  print(what);
  print(" ");
  print_dec(step);
  print(": ");
  print_hex(checksum);
  print("\n");
}

/* movl $value, %eax; ret */
static void write_function(uint64_t va, uint32_t value) {
  *at8(va) = 0xb8;
  *at32(va + 1) = value;
  *at8(va + 5) = 0xc3;
}

/* ---- do=pagetables: 6000 pages, a function in every frame ------------------------------- */

#define TABLE_PAGES 6000UL
#define FRAMES 2048UL
#define FUNCTION 16   /* offset in each frame, where no store of edit_one goes but its own */

static uint64_t faults;
static bool repair(struct frame *f, uint64_t cr2) {
  if (f->vector != PF || cr2 < TEST_VA || cr2 >= TEST_VA + TEST_PAGES * PAGE)
    return false;
  faults++;
  fold(f->error);
  fold(cr2);
  uint64_t page = cr2 & ~(PAGE - 1), old = *pte(page) & ADDR;
  if (!old)
    old = SCRATCH + next_random() % FRAMES * PAGE;
  *pte(page) = old | P | W;
  invlpg(page);
  return true;
}

static void edit_one(void) {
  uint64_t r = next_random(), i = r % TABLE_PAGES, va = TEST_VA + i * PAGE;
  volatile uint64_t *e = pte(va);
  uint64_t frame = SCRATCH + (r >> 16) % FRAMES * PAGE;
  switch (r >> 32 & 31) {
    case 0: *e = 0; break;
    case 1: *e = frame | P | W; break;
    case 2: *e = frame | P; break;
    case 3: *e = frame | P | W | NX; break;
    case 4: *e &= ~A; break;
    case 5: *e &= ~(A | D); break;
    case 6: *e ^= W; break;
    case 7: *e ^= NX; break;
    case 8: *e = frame | P | W | A | D | G; break;
    case 9: invlpg(va); break;
    case 10: if ((r >> 40 & 63) == 0) write_cr3(read_cr3()); break;
    case 11:
      for (uint64_t k = 0; k < 64 && i + k < TABLE_PAGES; k++)
        e[k] &= ~A;
      break;
    case 12:
      for (uint64_t k = 0; k < 64 && i + k < TABLE_PAGES; k++)
        fold(e[k] & (A | D));
      break;
    case 13:
      for (uint64_t k = 0; k < 16 && i + k < TABLE_PAGES; k++)
        e[k] = (SCRATCH + (r >> 16 & 1023) * PAGE + k * PAGE) | P | W;
      break;
    case 14: {   /* a directory entry, away and back */
      uint64_t old = test_pd[i / 512];
      test_pd[i / 512] = 0;
      fold(*pte(va) & (A | D));
      test_pd[i / 512] = old & ~A;
      break;
    }
    case 15: fold(test_pd[i / 512] & A); break;
    case 16: case 17: case 18: case 19: fold(*at64(va + (r >> 44 & 0xff8))); break;
    case 20: case 21: case 22: *at64(va + 64 + (r >> 44 & 0xf00)) = r; break;
    case 23: fold(*at64(va + PAGE - 4)); break;
    case 24: *at64(va + PAGE - 4) = 0x0000c3c3c3c3c3b8 | r << 40; break;
    case 25: case 26: case 27: case 28: {   /* code, through whatever translation there is: all frames have it */
      uint64_t code;
      *at32(va + FUNCTION + 1) = (uint32_t)r;
      (void)cpuid(0, 0);
      __asm__ volatile("call *%1" : "=a"(code) : "r"(va + FUNCTION) : "memory", "cc");
      fold(code);
      break;
    }
    case 29: __asm__ volatile("lock incq (%0)" : : "r"(va + 72) : "memory", "cc"); break;
    case 30: memcpy((void *)(va + 256), (void *)(va + 1024), 512); break;
    default: {
      uint64_t sum = 0;
      for (uint64_t k = 0; k < 200 && i + k < TABLE_PAGES; k++)
        sum += *at8(va + k * PAGE + 128);
      fold(sum);
    }
  }
}

static void page_tables(void) {
  unmap_tests();
  for (uint64_t i = 0; i < FRAMES; i++) {
    *at64(SCRATCH + i * PAGE + 128) = i * i;
    write_function(SCRATCH + i * PAGE + FUNCTION, (uint32_t)i);
  }
  trap_hook = repair;
  for (uint64_t step = 1; step <= 400000; step++) {
    edit_one();
    if (step % 50000 == 0)
      show("pagetables", step);
  }
  trap_hook = NULL;
  write_cr3(read_cr3());
  for (uint64_t i = 0; i < TEST_PAGES; i++)
    fold(*pte(TEST_VA + i * PAGE));
  for (uint64_t i = 0; i < FRAMES; i++)
    fold(*at64(SCRATCH + i * PAGE + 64));
  fold(faults);
  show("pagetables", faults);
}

/* ---- do=ticks ------------------------------------------------------------------------------------------- */

#define TIMER_VECTOR 0x6b
#define IPI_VECTOR 0x9c

static void tick(struct frame *f) {
  fold(f->rip);
  fold(f->rcx);
  fold(rdtsc());
  lapic_eoi();
}

static bool step_over(struct frame *f, uint64_t cr2) {
  if (f->vector == PF && cr2 >= TEST_VA && cr2 < TEST_VA + TEST_PAGES * PAGE) {
    fold(f->rcx ^ rdtsc());
    map(cr2 & ~(PAGE - 1), SCRATCH + (cr2 - TEST_VA) / PAGE % FRAMES * PAGE, P | W | NX);
    return true;
  }
  if (f->vector != UD && f->vector != BP)
    return false;
  fold(f->vector ^ rdtsc());
  if (f->vector == UD)
    f->rip += 2;
  return true;
}

USER_CODE(user_mix, "movq %rdi, %rcx; xorl %ebx, %ebx; 1: rdtsc; addq %rax, %rbx; imulq $31, %rbx; decq %rcx; jnz 1b");

#define NOPS16 "nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop;"

static void tick_step(void) {
  uint64_t r = next_random(), a, b;
  switch (r & 31) {
    case 0: case 1: case 2:
      __asm__ volatile("movq %2, %%rcx; 1: rdtsc; addq %%rax, %0; rorq $5, %0; nop; rdtsc; xorq %%rax, %0;"
                       "decq %%rcx; jnz 1b; movq %%rax, %1"
                       : "=&r"(a), "=r"(b) : "r"((r >> 8 & 63) + 1), "0"(r) : "rax", "rcx", "rdx", "cc");
      fold(a ^ b);
      break;
    case 3: case 4: case 5: case 6: case 7:
      sti();
      __asm__ volatile("movl %1, (%2);" NOPS16 "rdtsc;" NOPS16 "movq %%rax, %0" : "=r"(a)
                       : "r"((uint32_t)(r >> 8) % 20 + 1), "r"(0xfee00000UL + LAPIC_INITIAL) : "rax", "rdx", "memory");
      fold(a);
      spin(1200);
      cli();
      break;
    case 8: case 9:
      sti();
      lapic_write(LAPIC_ICR, 0x44000 | IPI_VECTOR);
      __asm__ volatile(NOPS16 "rdtsc; movq %%rax, %0" : "=r"(a) : : "rax", "rdx");
      fold(a);
      spin(1200);
      cli();
      break;
    case 10: fold(pit_read(0)); break;
    case 11: fold(inl(pm_timer_port())); break;
    case 12: outb(0x3ff, (uint8_t)r); fold(inb(0x3ff)); break;
    case 13: outb(0x80, (uint8_t)r); fold(rdtsc()); break;
    case 14: fold(lapic_read(LAPIC_CURRENT)); break;
    case 15: if (hpet_base()) fold(*at64(hpet_base() + 0xf0)); break;
    case 16: case 17: {
      uint64_t d = SCRATCH + (r >> 8 & 0xfffff), s = SCRATCH + 0x200000 + (r >> 28 & 0xfffff), n = r >> 48 & 0xfff;
      lapic_write(LAPIC_INITIAL, (uint32_t)(r >> 52) + 1);
      sti();
      __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
      cli();
      fold(d);
      break;
    }
    case 18: {
      uint64_t d = TEST_VA + (r >> 8 & 0xffffff), n = r >> 48 & 0x1fff;
      __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(r) : "memory");
      fold(d);
      break;
    }
    case 19: {
      uint64_t d = SCRATCH, s = SCRATCH + 0x300000, n = 500;
      __asm__ volatile("repe cmpsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory", "cc");
      fold(n);
      break;
    }
    case 20: __asm__ volatile("ud2; rdtsc" : "=a"(a) : : "rdx"); fold(a); break;
    case 21: __asm__ volatile("int3; rdtsc" : "=a"(a) : : "rdx"); fold(a); break;
    case 22: fold(*at64(TEST_VA + (r >> 8 & 0x3ffff00))); break;
    case 23: case 24: {
      uint64_t page = TEST_VA + (TEST_PAGES - 1 - (r >> 8 & 7)) * PAGE;
      map(page, SCRATCH + 0x800000 + (r >> 12 & 7) * PAGE, P | W);
      write_function(page + (r >> 16 & 0xf) * 16, (uint32_t)(r >> 20));
      __asm__ volatile("call *%1; movq %%rax, %0" : "=r"(a) : "r"(page + (r >> 16 & 0xf) * 16) : "rax", "memory");
      fold(a);
      break;
    }
    case 25:
      fold(user_call_as(user_mix, (r >> 8 & 127) + 1, USER_CS, 2));
      fold(seen.frame.rbx);
      break;
    case 26:
      lapic_write(LAPIC_INITIAL, (uint32_t)(r >> 8 & 0xfff) + 1);
      fold(user_call_as(user_mix, (r >> 24 & 255) + 1, USER_CS, 2 | IF));
      fold(seen.frame.rbx);
      break;
    case 27: if ((r >> 8 & 15) == 0) unmap_tests(); break;
    case 28: fold(cpuid(1, 0).eax ^ rdtsc()); break;
    case 29: {
      uint64_t before = irq_count[TIMER_VECTOR];
      sti();
      spin(1200);
      cli();
      if (irq_count[TIMER_VECTOR] != before)
        break;
      lapic_write(LAPIC_INITIAL, (uint32_t)(r >> 8 & 0xffff) + 2000);
      before = irq_count[TIMER_VECTOR];
      while (irq_count[TIMER_VECTOR] == before)
        sti_hlt_cli();
      fold(rdtsc());
      break;
    }
    case 30: wrmsr(MSR_FS_BASE, r >> 20); fold(rdmsr(MSR_FS_BASE)); break;
    default: spin(r >> 8 & 0xfff);
  }
}

static void ticks(void) {
  irq_handler[TIMER_VECTOR] = irq_handler[IPI_VECTOR] = tick;
  trap_hook = step_over;
  lapic_write(LAPIC_DIVIDE, 0xb);
  lapic_write(LAPIC_TIMER, TIMER_VECTOR);
  pit_start(0, 2, 0);
  if (hpet_base())
    *at64(hpet_base() + 0x10) = 1;
  for (uint64_t step = 1; step <= 32000; step++) {
    tick_step();
    if (step % 2000 == 0)
      show("ticks", step);
  }
  fold(irq_count[TIMER_VECTOR]);
  fold(irq_count[IPI_VECTOR]);
  show("ticks", irq_count[TIMER_VECTOR] + irq_count[IPI_VECTOR]);
  lapic_write(LAPIC_TIMER, LVT_MASKED);
}

/* ---- the short ones ------------------------------------------------------------------------------------- */

static void unmapped(void) {
  static const uint64_t places[] = {0x20000000, 0x2000000000, 0xfeb00000};
  for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
    map(TEST_VA, places[i], P | W | NX);
    print("unmapped ");
    print_hex(places[i]);
    print(": ");
    print_hex(*at8(TEST_VA));
    print(" ");
    print_hex(*at16(TEST_VA + 2));
    print(" ");
    print_hex(*at32(TEST_VA + 4));
    print(" ");
    print_hex(*at64(TEST_VA + 8));
    *at64(TEST_VA + 16) = 0x1234;
    print(" ");
    print_hex(*at64(TEST_VA + 16));
    print("\n");
  }
}

/* Loads an IDT register from anywhere. */
static void load_idt_at(uint64_t base, uint16_t limit) {
  struct { uint16_t limit; uint64_t base; } __attribute__((packed)) d = {limit, base};
  __asm__ volatile("lidt %0" : : "m"(d) : "memory");
}

bool run_action(const char *what) {
  print("do ");
  print(what);
  print("\n");
  if (!memcmp(what, "bench=", 6))
    return run_bench(what + 6);
  if (same(what, "triple")) {
    load_idt_at(0, 0);
    __asm__ volatile("int3");
  } else if (same(what, "fault-delivering")) {
    load_idt_at(TEST_VA, 4095);
    __asm__ volatile("ud2");
  } else if (same(what, "hang")) {
    for (;;)
      __asm__ volatile("cli; 1: jmp 1b");
  } else if (same(what, "deadlock")) {
    for (;;)
      __asm__ volatile("cli; hlt");
  } else if (same(what, "idle-forever")) {
    for (;;)
      __asm__ volatile("sti; hlt");
  } else if (same(what, "unmapped")) {
    unmapped();
  } else if (same(what, "pagefault")) {
    *at64(TEST_VA + 0x123456) = 1;
  } else if (same(what, "pagetables")) {
    page_tables();
  } else if (same(what, "ticks")) {
    ticks();
  } else {
    return false;
  }
  print("done\n");
  return true;
}
