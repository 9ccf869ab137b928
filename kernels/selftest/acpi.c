/* ACPI tables, from the RSDP down (ACPI 6.5 chapter 5), and power-off by S5 (section 7.4.2.5). */
#include "selftest.h"

static const uint8_t *rsdp;
uint64_t acpi_bad_checksums;
static uint16_t pm1a_control;
static unsigned s5_type;

static uint8_t sum(const uint8_t *p, size_t n) {
  uint8_t s = 0;
  while (n--)
    s = (uint8_t)(s + *p++);
  return s;
}

static uint32_t get32(const uint8_t *p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return v;
}

static uint64_t get64(const uint8_t *p) {
  uint64_t v;
  memcpy(&v, p, 8);
  return v;
}

static const uint8_t *find_rsdp(void) {
  uint64_t a = start_info->rsdp_paddr;
  if (a && !memcmp((void *)a, "RSD PTR ", 8))
    return (const uint8_t *)a;
  for (a = 0xe0000; a < 0x100000; a += 16)
    if (!memcmp((void *)a, "RSD PTR ", 8) && !sum((const uint8_t *)a, 20))
      return (const uint8_t *)a;
  return NULL;
}

const uint8_t *acpi_table(const char *signature) {
  if (!rsdp)
    return NULL;
  bool wide = rsdp[15] >= 2;
  uint64_t root = wide ? get64(rsdp + 24) : get32(rsdp + 16);
  const uint8_t *r = (const uint8_t *)root;
  size_t entry = wide ? 8 : 4, n = (get32(r + 4) - 36) / entry;
  acpi_bad_checksums += sum(r, get32(r + 4)) != 0;
  for (size_t i = 0; i < n; i++) {
    const uint8_t *e = r + 36 + i * entry, *t = (const uint8_t *)(wide ? get64(e) : get32(e));
    if (memcmp(t, signature, 4))
      continue;
    acpi_bad_checksums += sum(t, get32(t + 4)) != 0;
    return t;
  }
  return NULL;
}

static const uint8_t *dsdt(void) {
  const uint8_t *fadt = acpi_table("FACP");
  if (!fadt)
    return NULL;
  uint64_t a = get32(fadt + 4) >= 148 ? get64(fadt + 140) : 0;
  return (const uint8_t *)(a ? a : get32(fadt + 40));
}

/* Name (_S5, Package () {SLP_TYPa, …}): NameOp "_S5_" PackageOp PkgLength NumElements, then the first element,
 * ZeroOp, OneOp or BytePrefix and a byte. */
static unsigned find_s5(void) {
  const uint8_t *d = dsdt();
  if (!d)
    return 0;
  for (size_t i = 36, n = get32(d + 4); i + 12 < n; i++) {
    if (memcmp(d + i, "_S5_\x12", 5))
      continue;
    const uint8_t *p = d + i + 5;
    p += 1 + (*p >> 6);   /* PkgLength */
    p += 1;               /* NumElements */
    return *p == 0x0a ? p[1] : *p;
  }
  return 0;
}

void acpi_init(void) {
  rsdp = find_rsdp();
  const uint8_t *fadt = acpi_table("FACP");
  if (!fadt)
    return;
  pm1a_control = (uint16_t)get32(fadt + 64);
  s5_type = find_s5();
  uint16_t smi_command = (uint16_t)get32(fadt + 48);
  if (smi_command && !(inw(pm1a_control) & 1)) {
    outb(smi_command, fadt[52]);   /* ACPI_ENABLE */
    for (int i = 0; i < 10000 && !(inw(pm1a_control) & 1); i++)
      pause();
  }
}

void acpi_power_off(void) {
  if (pm1a_control)
    outw(pm1a_control, (uint16_t)(s5_type << 10 | 1 << 13));
}

uint16_t pm_timer_port(void) {
  const uint8_t *fadt = acpi_table("FACP");
  return fadt ? (uint16_t)get32(fadt + 76) : 0;
}

unsigned pm_timer_bits(void) {
  const uint8_t *fadt = acpi_table("FACP");
  return fadt && get32(fadt + 112) & 1 << 8 ? 32 : 24;
}

uint64_t ecam_base(void) {
  const uint8_t *t = acpi_table("MCFG");
  return t ? get64(t + 44) : 0;
}

uint64_t hpet_base(void) {
  const uint8_t *t = acpi_table("HPET");
  return t ? get64(t + 44) : 0;
}

/* First structure of this type in the MADT, NULL if there is none. */
static const uint8_t *madt_entry(unsigned type, const uint8_t *after) {
  const uint8_t *t = acpi_table("APIC");
  if (!t)
    return NULL;
  const uint8_t *p = after ? after + after[1] : t + 44;
  for (; p < t + get32(t + 4) && p[1]; p += p[1])
    if (*p == type)
      return p;
  return NULL;
}

uint32_t io_apic_base(void) {
  const uint8_t *e = madt_entry(1, NULL);
  return e ? get32(e + 4) : 0;
}

uint32_t gsi_of_irq0(void) {
  for (const uint8_t *e = NULL; (e = madt_entry(2, e));)
    if (e[3] == 0)
      return get32(e + 4);
  return 0;
}

void test_acpi(void) {
  static const char *const wanted[] = {"FACP", "APIC", "MCFG", "HPET"};
  begin("acpi/rsdp");
  expect_true("found", rsdp != NULL);
  if (rsdp) {
    expect("checksum", sum(rsdp, 20), 0);
    if (rsdp[15] >= 2)
      expect("extended checksum", sum(rsdp, get32(rsdp + 20)), 0);
  }
  end();
  begin("acpi/tables");
  acpi_bad_checksums = 0;
  for (size_t i = 0; i < 4; i++)
    expect_true(wanted[i], acpi_table(wanted[i]) != NULL);
  expect_true("an unknown one is absent", acpi_table("NONE") == NULL);
  expect("bad checksums", acpi_bad_checksums, 0);
  end();
  begin("acpi/dsdt");
  const uint8_t *d = dsdt();
  expect_true("found", d && !memcmp(d, "DSDT", 4));
  if (d)
    expect("checksum", sum(d, get32(d + 4)), 0);
  end();
  begin("acpi/fadt");
  const uint8_t *fadt = acpi_table("FACP");
  if (fadt) {
    uint32_t control = get32(fadt + 64);
    expect_true("PM1a event block", get32(fadt + 56) != 0);
    expect_true("PM1a control block", control != 0);
    expect_true("PM timer block", get32(fadt + 76) != 0);
    expect("PM timer length", fadt[91], 4);
    expect("SCI_EN", inw((uint16_t)control) & 1, 1);
    expect_true("reset register is supported", get32(fadt + 112) >> 10 & 1);
    expect("SCI interrupt", fadt[46], 9);
  }
  end();
  begin("acpi/madt");
  const uint8_t *cpu = madt_entry(0, NULL), *lapic = acpi_table("APIC");
  expect_true("a processor is enabled", cpu && get32(cpu + 4) & 1);
  if (lapic)
    expect("local APIC address", get32(lapic + 36), 0xfee00000);
  expect("I/O APIC address", io_apic_base(), 0xfec00000);
  expect("IRQ0 is GSI", gsi_of_irq0(), 2);
  end();
}
