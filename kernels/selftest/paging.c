/* The page tables that every test starts from:
 *
 *   0 … 4 GiB          1:1 in 2 MiB pages, RW and NX, but the kernel's text, which is read-only and executable
 *   USER_VA            ring 3: the .user part of the text (R X), and a stack (RW NX)
 *   TEST_VA            64 MiB of 4 KiB entries, all clear
 *
 * Upper levels allow everything; the entries that tests change are the lowest. */
#include "selftest.h"

#define TEST_TABLES (TEST_PAGES / 512)

uint64_t pml4[512] __attribute__((aligned(4096)));
uint64_t low_pdpt[512] __attribute__((aligned(4096)));
static uint64_t low_pd[4][512] __attribute__((aligned(4096)));
static uint64_t user_pt[512] __attribute__((aligned(4096)));
uint64_t test_pdpt[512] __attribute__((aligned(4096)));
uint64_t test_pd[512] __attribute__((aligned(4096)));
static uint64_t test_pt[TEST_TABLES][512] __attribute__((aligned(4096)));
static uint8_t user_stack[4 * PAGE] __attribute__((aligned(4096)));

extern char user_text[], user_text_end[];

volatile uint64_t *pte(uint64_t va) {
  if (va >= TEST_VA)
    return &test_pt[0][(va - TEST_VA) / PAGE];
  return &user_pt[(va - USER_VA) / PAGE];
}

void map(uint64_t va, uint64_t pa, uint64_t bits) {
  *pte(va) = pa | bits;
  invlpg(va);
}

void unmap_tests(void) {
  memset(test_pt, 0, sizeof test_pt);
  for (unsigned i = 0; i < TEST_TABLES; i++)
    test_pd[i] = (uint64_t)test_pt[i] | P | W | U;
  write_cr3(read_cr3());
}

void mmu_init(void) {
  wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1 << 11 | 1);   /* NXE, SCE */
  pml4[0] = (uint64_t)low_pdpt | P | W | U;
  for (unsigned i = 0; i < 4; i++)
    low_pdpt[i] = (uint64_t)low_pd[i] | P | W | U;
  for (uint64_t i = 0; i < 2048; i++)
    low_pd[0][i] = i * 0x200000 | P | W | PS | A | D | NX;
  low_pd[0][1] = 0x200000 | P | PS | A;
  /* the first GiB holds RAM, the last device registers; the second is ring 3's */
  memset(low_pd[1], 0, sizeof low_pd[1]);
  low_pd[1][0] = (uint64_t)user_pt | P | W | U;
  for (uint64_t a = (uint64_t)user_text, i = 0; a < (uint64_t)user_text_end; a += PAGE, i++)
    user_pt[i] = a | P | U | A;
  for (uint64_t i = 0; i < 4; i++)
    *pte(USER_STACK - (i + 1) * PAGE) = (uint64_t)(user_stack + i * PAGE) | P | W | U | NX;
  pml4[TEST_VA >> 39] = (uint64_t)test_pdpt | P | W | U;
  test_pdpt[0] = (uint64_t)test_pd | P | W | U;
  write_cr3((uint64_t)pml4);
  unmap_tests();
  write_cr4(0x20 | 1 << 7 | 1 << 9 | 1 << 10);            /* PAE PGE OSFXSR OSXMMEXCPT */
  write_cr0(0x80010033);                                   /* PG WP NE ET MP PE */
}
