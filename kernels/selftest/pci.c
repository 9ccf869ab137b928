/* PCI configuration space by ports 0xCF8/0xCFC (PCI 3.0 section 3.2.2.3.2) and by memory (ECAM). */
#include "selftest.h"

static uint32_t by_port(unsigned bus, unsigned device, unsigned function, unsigned reg) {
  outl(0xcf8, 1u << 31 | bus << 16 | device << 11 | function << 8 | (reg & 0xfc));
  return inl(0xcfc);
}

static volatile uint32_t *by_memory(unsigned bus, unsigned device, unsigned function, unsigned reg) {
  return at32(ecam_base() + (bus << 20 | device << 15 | function << 12 | reg));
}

void test_pci(void) {
  begin("pci/host bridge");
  expect("vendor and device", by_port(0, 0, 0, 0), 0x29c08086);
  expect("class", by_port(0, 0, 0, 8) >> 16, 0x0600);
  expect("header type", by_port(0, 0, 0, 12) >> 16 & 0x7f, 0);
  end();

  begin("pci/ports");
  outl(0xcf8, 0x80001234 & ~3u);
  expect("address reads back", inl(0xcf8), 0x80001234 & ~3u);
  outl(0xcf8, 1u << 31);
  expect("low word", inw(0xcfc), 0x8086);
  expect("high word", inw(0xcfe), 0x29c0);
  expect("byte", inb(0xcfd), 0x80);
  outl(0xcf8, 0);
  expect("disabled", inl(0xcfc), 0xffffffff);
  end();

  begin("pci/absent devices read as ones");
  expect("by port", by_port(0, 29, 7, 0), 0xffffffff);
  expect("another bus", by_port(77, 3, 0, 0), 0xffffffff);
  if (ecam_base()) {
    expect("by memory", *by_memory(0, 29, 7, 0), 0xffffffff);
    expect("another bus", *by_memory(77, 3, 0, 0), 0xffffffff);
  }
  end();

  begin("pci/memory agrees with ports");
  expect_true("ECAM", ecam_base() != 0);
  if (ecam_base()) {
    for (unsigned reg = 0; reg < 64; reg += 4)
      expect("host bridge", *by_memory(0, 0, 0, reg), by_port(0, 0, 0, reg));
    unsigned differ = 0;
    for (unsigned device = 0; device < 32; device++)
      differ += *by_memory(0, device, 0, 0) != by_port(0, device, 0, 0);
    expect("identities that differ on bus 0", differ, 0);
    expect("byte", *(volatile uint8_t *)by_memory(0, 0, 0, 1), 0x80);
    expect("word", *(volatile uint16_t *)by_memory(0, 0, 0, 2), 0x29c0);
  }
  end();

  begin("pci/registers");
  unsigned interrupt_line = by_port(0, 0, 0, 0x3c);
  outl(0xcf8, 1u << 31);
  outl(0xcfc, 0x12345678);
  expect("identity is read-only", by_port(0, 0, 0, 0), 0x29c08086);
  expect("unchanged", by_port(0, 0, 0, 0x3c), interrupt_line);
  end();
}
