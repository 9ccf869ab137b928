/* Results and text: polled output to the first UART, one line a test. */
#include "selftest.h"

#define COM1 0x3f8
#define LSR_THR_EMPTY 0x20

uint64_t tests_run, tests_failed;
static const char *test_name;
static bool test_ok;

static void put(char c) {
  while (!(inb(COM1 + 5) & LSR_THR_EMPTY)) {
  }
  outb(COM1, (uint8_t)c);
}

void print(const char *s) {
  while (*s)
    put(*s++);
}

void print_hex(uint64_t value) {
  char text[19], *p = text + 18;
  *p = 0;
  do {
    *--p = "0123456789abcdef"[value & 15];
    value >>= 4;
  } while (value);
  *--p = 'x';
  *--p = '0';
  print(p);
}

void print_dec(uint64_t value) {
  char text[21], *p = text + 20;
  *p = 0;
  do {
    *--p = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  print(p);
}

void begin(const char *name) {
  test_name = name;
  test_ok = true;
}

static void failed(const char *label, uint64_t got) {
  test_ok = false;
  print("  ");
  print(test_name);
  print(": ");
  print(label);
  print(": got ");
  print_hex(got);
  print(", expected ");
}

void expect(const char *label, uint64_t got, uint64_t want) {
  if (got == want)
    return;
  failed(label, got);
  print_hex(want);
  print("\n");
}

void expect_true(const char *label, bool holds) {
  if (holds)
    return;
  failed(label, 0);
  print("true\n");
}

void expect_range(const char *label, uint64_t got, uint64_t low, uint64_t high) {
  if (low <= got && got <= high)
    return;
  failed(label, got);
  print_hex(low);
  print(" to ");
  print_hex(high);
  print("\n");
}

void end(void) {
  tests_run++;
  tests_failed += !test_ok;
  print(test_name);
  print(test_ok ? ": ok\n" : ": FAILED\n");
}

/* By string instructions: a loop that the compiler recognises as memset would call itself. */
void *memset(void *d, int c, size_t n) {
  void *p = d;
  __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
  return d;
}

void *memcpy(void *d, const void *s, size_t n) {
  void *p = d;
  __asm__ volatile("rep movsb" : "+D"(p), "+S"(s), "+c"(n) : : "memory");
  return d;
}

void *memmove(void *d, const void *s, size_t n) {
  if ((uintptr_t)d - (uintptr_t)s >= n)
    return memcpy(d, s, n);
  uint8_t *p = (uint8_t *)d + n - 1;
  const uint8_t *q = (const uint8_t *)s + n - 1;
  __asm__ volatile("std; rep movsb; cld" : "+D"(p), "+S"(q), "+c"(n) : : "memory");
  return d;
}

int memcmp(const void *a, const void *b, size_t n) {
  const volatile uint8_t *p = a, *q = b;
  for (size_t i = 0; i < n; i++)
    if (p[i] != q[i])
      return p[i] < q[i] ? -1 : 1;
  return 0;
}

bool same(const char *a, const char *b) {
  while (*a && *a == *b)
    a++, b++;
  return *a == *b;
}

/* Long enough for any timer here (milliseconds) on a host that is busy with something else. */
bool wait_for(const volatile uint64_t *counter, uint64_t want) {
  for (uint64_t i = 0; i < 400000000; i++)
    if (*counter >= want)
      return true;
  return false;
}

void spin(uint64_t rounds) {
  if (rounds)
    __asm__ volatile("1: decq %0; jnz 1b" : "+r"(rounds) : : "cc");
}

void drain(void) {
  sti();
  spin(5000);
  cli();
}
