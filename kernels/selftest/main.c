/* The self-test guest: exercises every CPU and device feature of the machine, prints the same lines on every
 * machine that has them right, and powers off.
 *
 * Command line (PVH start info), words separated by blanks:
 *   only=cpu,mmu  skip=svm     which groups run
 *   loop=N                     run them N times, then the result of all together
 *   do=WHAT                    something else instead: action.c; do=bench=NAME: bench.c */
#include "selftest.h"

#define PVH_MAGIC 0x336ec578

const struct start_info *start_info;

static const struct { const char *name; void (*run)(void); } groups[] = {
    {"cpu", test_cpu}, {"fault", test_fault}, {"string", test_string}, {"ring3", test_ring3}, {"fpu", test_fpu},
    {"debug", test_debug}, {"mmu", test_mmu}, {"smc", test_smc}, {"acpi", test_acpi}, {"pci", test_pci},
    {"uart", test_uart}, {"pic", test_pic}, {"pit", test_pit}, {"rtc", test_rtc}, {"pmtimer", test_pmtimer},
    {"lapic", test_lapic}, {"ioapic", test_ioapic}, {"hpet", test_hpet}, {"timing", test_timing},
    {"svm", test_svm}, {"edu", test_edu}, {"e1000", test_e1000}, {"vtd", test_vtd},
};

/* Copies the value of `key` (with its "=") from the command line; false if it is not there. */
static bool option(const char *key, char *value, size_t size) {
  const char *p = (const char *)start_info->cmdline_paddr;
  if (!p)
    return false;
  for (;;) {
    while (*p == ' ')
      p++;
    if (!*p)
      return false;
    const char *k = key;
    while (*k && *p == *k)
      p++, k++;
    if (!*k) {
      size_t n = 0;
      while (*p && *p != ' ' && n + 1 < size)
        value[n++] = *p++;
      value[n] = 0;
      return true;
    }
    while (*p && *p != ' ')
      p++;
  }
}

static bool listed(const char *list, const char *name) {
  while (*list) {
    const char *n = name;
    while (*n && *list == *n)
      list++, n++;
    if (!*n && (!*list || *list == ','))
      return true;
    while (*list && *list != ',')
      list++;
    list += *list == ',';
  }
  return false;
}

void kmain(const struct start_info *info);
void kmain(const struct start_info *info) {
  static char only[256], skip[256], what[64], count[24];
  outb(0x3f8 + 1, 0);      /* no interrupts, 115200 8n1, FIFOs on, DTR RTS OUT2 */
  outb(0x3f8 + 3, 0x80);
  outb(0x3f8 + 0, 1);
  outb(0x3f8 + 1, 0);
  outb(0x3f8 + 3, 3);
  outb(0x3f8 + 2, 7);
  outb(0x3f8 + 4, 0x0b);
  start_info = info;
  mmu_init();
  trap_init();
  print("selftest: started\n");
  if (info->magic != PVH_MAGIC) {
    static const struct start_info none;   /* no command line; the RSDP is searched for */
    print("selftest: no PVH start info\n");
    start_info = &none;
  }
  acpi_init();
  pic_init();
  pit_stop();
  lapic_init();
  if (option("do=", what, sizeof what)) {
    if (!run_action(what))
      print("selftest: unknown action\n");
    power_off();
  }
  bool have_only = option("only=", only, sizeof only);
  option("skip=", skip, sizeof skip);
  uint64_t loops = 1;
  if (option("loop=", count, sizeof count)) {
    loops = 0;
    for (const char *p = count; *p >= '0' && *p <= '9'; p++)
      loops = loops * 10 + (uint64_t)(*p - '0');
  }
  for (uint64_t n = 0; n < loops; n++)
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++)
      if ((!have_only || listed(only, groups[i].name)) && !listed(skip, groups[i].name))
        groups[i].run();
  print("selftest: ");
  print_dec(tests_run);
  print(" tests, ");
  print_dec(tests_failed);
  print(" failed\n");
  power_off();
}
