/* The gigabit controller 82540EM (8254x manual): EEPROM and PHY, rings with the PHY looping back what is sent, filters,
 * checksums, segmentation, interrupt, counters. The group prints nothing where there is no such device. */
#include "selftest.h"

#define ID 0x100e8086u
#define BAR 0xc0200000UL
#define PIN_VECTOR 0x68
#define TIMER_VECTOR 0x69
#define LEVEL (1UL << 15)
#define MASKED (1UL << 16)

enum { CTRL = 0, DEV_STATUS = 8, EECD = 0x10, EERD = 0x14, MDIC = 0x20, ICR = 0xc0, ICS = 0xc8, IMS = 0xd0, IMC = 0xd8,
       RCTL = 0x100, TCTL = 0x400, RDBAL = 0x2800, TDBAL = 0x3800, MTA = 0x5200, RAL = 0x5400, GPRC = 0x4074,
       GPTC = 0x4080 };
enum { LEN = 8, HEAD = 0x10, TAIL = 0x18 };   /* of a ring, from its base register */
enum { EN = 2, UPE = 8, MPE = 0x10, LPE = 0x20, BAM = 0x8000, SECRC = 1 << 26 };
enum { EOP = 1, IFCS = 2, TSE = 4, RS = 8, DEXT = 0x20 };
enum { TXDW = 1, LSC = 4, RXT0 = 0x80 };

#define COUNT 16u
#define RX_RING SCRATCH
#define TX_RING (SCRATCH + 0x1000)
#define OUT (SCRATCH + 0x2000)
#define IN(i) (SCRATCH + 0x10000 + (i) * 0x1000UL)

static uint64_t config;
static unsigned sent, taken;   /* descriptors: how many were used so far */
static uint8_t mac[6];

static volatile uint32_t *conf(unsigned at) { return at32(config + at); }
static volatile uint32_t *reg(unsigned at) { return at32(BAR + at); }

static bool find(void) {
  if (!ecam_base())
    return false;
  for (unsigned slot = 1; slot < 31; slot++) {
    config = ecam_base() + (slot << 15);
    if (*conf(0) == ID)
      return true;
  }
  return false;
}

static void set_up(void) {
  *at16(config + 4) = 0;
  *conf(0x10) = (uint32_t)BAR;
  *at16(config + 4) = 6;   /* memory, bus master */
  *reg(IMC) = 0xffffffff;
}

static uint32_t phy(unsigned number) {
  *reg(MDIC) = 2u << 26 | 1u << 21 | number << 16;
  while (!(*reg(MDIC) & 1u << 28))
    pause();
  return *reg(MDIC);
}

static void set_phy(unsigned number, uint32_t value) {
  *reg(MDIC) = 1u << 26 | 1u << 21 | number << 16 | value;
  while (!(*reg(MDIC) & 1u << 28))
    pause();
}

/* ---- rings ---- */

static void tick(struct frame *f) {
  (void)f;
  lapic_eoi();
}

/* More than a second: for so long QEMU receives nothing after the receiver was told anything. */
static void settle(void) {
  irq_handler[TIMER_VECTOR] = tick;
  io_apic_write_entry(gsi_of_irq0(), TIMER_VECTOR);
  pit_start(0, 2, 0);
  for (irq_count[TIMER_VECTOR] = 0; irq_count[TIMER_VECTOR] < 20;)
    sti_hlt_cli();
  io_apic_write_entry(gsi_of_irq0(), MASKED);
  pit_start(0, 0, 1);
  spin(100000);
  pit_stop();
  drain();
}

static void rings(uint32_t control) {
  *reg(TCTL) = 0;
  memset((void *)SCRATCH, 0, 0x30000);
  for (unsigned i = 0; i < COUNT; i++)
    *at64(RX_RING + 16 * i) = IN(i);
  sent = taken = 0;
  static const unsigned bases[2] = {RDBAL, TDBAL};
  for (unsigned i = 0; i < 2; i++) {
    *reg(bases[i]) = (uint32_t)(i ? TX_RING : RX_RING);
    *reg(bases[i] + 4) = 0;
    *reg(bases[i] + LEN) = 16 * COUNT;
    *reg(bases[i] + HEAD) = 0;
    *reg(bases[i] + TAIL) = i ? 0 : COUNT - 1;
  }
  *reg(TCTL) = 0x0004010a;   /* enabled, short frames filled up */
  if (*reg(RCTL) != (EN | SECRC | control)) {
    *reg(RCTL) = EN | SECRC | control;
    settle();
  }
}

/* A frame of `size` bytes at OUT, to `to`. */
static uint8_t *make(const uint8_t *to, unsigned size) {
  uint8_t *f = (uint8_t *)OUT;
  for (unsigned i = 0; i < size; i++)
    f[i] = (uint8_t)(i * 7 + (i >> 8));
  memcpy(f, to, 6);
  memcpy(f + 6, mac, 6);
  f[12] = 0x88, f[13] = 0xb5;
  return f;
}

static void put(uint64_t low, uint64_t high) {
  *at64(TX_RING + 16 * (sent % COUNT)) = low;
  *at64(TX_RING + 16 * (sent++ % COUNT) + 8) = high;
}

/* Gives the descriptors over and waits until the last one, which must have RS, is done. */
static bool go(void) {
  volatile uint8_t *done = at8(TX_RING + 16 * ((sent - 1) % COUNT) + 12);
  *reg(TDBAL + TAIL) = sent % COUNT;
  for (unsigned long i = 0; i < 1UL << 26; i++)
    if (*done & 1)
      return true;
  return false;
}

static bool send(const uint8_t *to, unsigned size) {
  make(to, size);
  put(OUT, (uint64_t)(EOP | IFCS | RS) << 24 | size);
  return go();
}

/* The next received descriptor's upper half, 0 if there is none; it goes back to the card after the next one. */
static uint64_t take(unsigned *buffer) {
  *buffer = taken % COUNT;
  volatile uint64_t *d = at64(RX_RING + 16 * *buffer + 8);
  for (unsigned long i = 0; i < 20000; i++)
    if (*d >> 32 & 1) {
      uint64_t value = *d;
      *d = 0;
      *reg(RDBAL + TAIL) = taken++ % COUNT;
      return value;
    }
  return 0;
}

/* ---- tests ---- */

static void test_registers(void) {
  begin("e1000/registers");
  expect("class", *conf(8) >> 8, 0x020000);
  expect("pin", *at8(config + 0x3d), 1);
  *conf(0x10) = 0xffffffff;
  expect("BAR size", *conf(0x10), 0xfffe0000);
  *conf(0x10) = (uint32_t)BAR;
  expect("link, full duplex", *reg(DEV_STATUS) & 3, 3);
  expect("speed", *reg(DEV_STATUS) >> 6 & 3, 2);
  *reg(RDBAL) = 0x12345678;
  expect("ring", *reg(RDBAL) & ~0xfu, 0x12345670);
  end();
}

static void test_eeprom(void) {
  begin("e1000/eeprom");
  uint16_t sum = 0, words[64];
  for (unsigned i = 0; i < 64; i++) {
    *reg(EERD) = i << 8 | 1;
    while (!(*reg(EERD) & 0x10))
      pause();
    words[i] = (uint16_t)(*reg(EERD) >> 16);
    sum = (uint16_t)(sum + words[i]);
  }
  expect("sum", sum, 0xbaba);
  memcpy(mac, words, 6);
  expect("address", *reg(RAL), words[0] | (uint32_t)words[1] << 16);
  expect("valid", *reg(RAL + 4), words[2] | 1u << 31);
  *reg(EECD) = 0x40;
  expect("granted", *reg(EECD) >> 7 & 1, 1);
  unsigned differ = 0;
  for (unsigned i = 0; i < 64; i++) {
    uint32_t command = 6u << 6 | i, word = 0;
    *reg(EECD) = 0x42;
    for (int bit = 8; bit >= -16; bit--) {
      uint32_t pins = 0x42 | (bit >= 0 && command >> bit & 1 ? 4 : 0);
      *reg(EECD) = pins;
      *reg(EECD) = pins | 1;
      if (bit < 0)
        word = word << 1 | (*reg(EECD) >> 3 & 1);
      *reg(EECD) = pins;
    }
    *reg(EECD) = 0x40;
    differ += word != words[i];
  }
  expect("words that differ by wire", differ, 0);
  *reg(EECD) = 0;
  end();

  begin("e1000/phy");
  expect("identity", phy(2) & 0xffff, 0x0141);
  expect("link", phy(1) & 4, 4);
  expect("status", phy(17) & 0xac00, 0xac00);
  *reg(MDIC) = 2u << 26 | 9u << 21;
  expect("nobody there", *reg(MDIC) >> 30 & 1, 1);
  end();
}

static void test_frames(void) {
  uint64_t got;
  unsigned at;
  begin("e1000/frames");
  rings(0);
  static const unsigned sizes[] = {60, 61, 64, 777, 1514};
  for (unsigned i = 0; i < 40; i++) {
    unsigned size = sizes[i % 5];
    expect_true("sent", send(mac, size));
    got = take(&at);
    expect("size, sum", got & 0xffff, size);
    expect("status", got >> 32 & 0x83, 3);
    expect("errors", got >> 40 & 0xff, 0);
    expect("bytes that differ", (uint64_t)memcmp((void *)IN(at), (void *)OUT, size), 0);
  }
  expect("head", *reg(TDBAL + HEAD), 40 % COUNT);
  end();

  begin("e1000/long frames");
  rings(LPE);
  expect_true("sent", send(mac, 5000));
  static const unsigned pieces[] = {2048, 2048, 904};
  for (unsigned i = 0; i < 3; i++) {
    got = take(&at);
    expect("size", got & 0xffff, pieces[i]);
    expect("last", got >> 32 & 3, i == 2 ? 3 : 1);
    expect("differ", (uint64_t)memcmp((void *)IN(at), (uint8_t *)OUT + 2048 * i, pieces[i]), 0);
  }
  rings(0);
  expect_true("sent", send(mac, 5000));
  expect("not taken", take(&at), 0);
  rings(LPE | 1u << 25 | 2u << 16);   /* buffers of 8 KiB: all in one */
  *at64(RX_RING) = SCRATCH + 0x40000;
  expect_true("sent", send(mac, 7000));
  expect("in one", take(&at) & 0x3ffffffff, 3UL << 32 | 7000);
  end();

  begin("e1000/pieces and padding");
  rings(0);
  make(mac, 600);
  put(OUT, (uint64_t)IFCS << 24 | 100);
  put(OUT + 100, (uint64_t)IFCS << 24 | 1);
  put(OUT + 101, (uint64_t)(EOP | IFCS | RS) << 24 | 499);
  expect_true("sent", go());
  expect("size", take(&at) & 0xffff, 600);
  expect("differ", (uint64_t)memcmp((void *)IN(at), (void *)OUT, 600), 0);
  expect("done", *at8(TX_RING + 12) & 1, 0);
  expect_true("sent", send(mac, 20));
  expect("size", take(&at) & 0xffff, 60);
  expect("filling", *at8(IN(at) + 20) | *at8(IN(at) + 59), 0);
  end();
}

static void test_filters(void) {
  static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, other[6] = {2, 0, 0, 0, 0, 9};
  static const uint8_t multicast[6] = {1, 0, 0x5e, 0x12, 0x34, 0x56};
  static const struct { const uint8_t *to; uint32_t control; bool taken; } cases[] = {
      {mac, 0, true}, {other, 0, false}, {broadcast, 0, false}, {multicast, 0, false}, {other, UPE, true},
      {other, MPE, false}, {multicast, MPE, true}, {broadcast, BAM, true}};
  unsigned at;
  begin("e1000/filters");
  for (unsigned i = 0; i < 128; i++)
    *reg(MTA + 4 * i) = 0;
  for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    rings(cases[i].control);
    expect_true("sent", send(cases[i].to, 60));
    expect("taken", take(&at) != 0, cases[i].taken);
  }
  for (unsigned offset = 0; offset < 4; offset++) {
    static const unsigned shift[4] = {4, 3, 2, 0};
    unsigned hash = (multicast[4] | (unsigned)multicast[5] << 8) >> shift[offset] & 0xfff;
    *reg(MTA + 4 * (hash >> 5)) = 1u << (hash & 31);
    rings(offset << 12);
    expect_true("sent", send(multicast, 60));
    expect("by its hash", take(&at) != 0, 1);
    *reg(MTA + 4 * (hash >> 5)) = 0;
  }
  *reg(RAL + 8 * 7) = other[0];
  *reg(RAL + 8 * 7 + 4) = 9u << 8 | 1u << 31;
  rings(0);
  expect_true("sent", send(other, 60));
  expect("another address", take(&at) != 0, 1);
  *reg(RAL + 8 * 7 + 4) = 0;
  end();
}

/* ---- offload ---- */

static uint16_t sum(const uint8_t *p, unsigned size, uint32_t total) {
  for (unsigned i = 0; i < size; i++)
    total += i & 1 ? p[i] : (uint32_t)p[i] << 8;
  while (total >> 16)
    total = (total & 0xffff) + (total >> 16);
  return (uint16_t)total;
}

/* An IPv4 TCP packet of `payload` bytes at OUT, with the sums that a driver leaves there. */
static void make_tcp(unsigned payload, bool long_send) {
  uint8_t *f = make(mac, 54 + payload), *ip = f + 14, *tcp = f + 34;
  static const uint8_t head[20] = {0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2};
  f[12] = 8, f[13] = 0;
  memcpy(ip, head, 20);
  memset(tcp, 0, 20);
  tcp[1] = 1, tcp[3] = 2, tcp[4] = 0xff, tcp[5] = 0xff, tcp[6] = 0xff, tcp[7] = 0;   /* sequence 0xffffff00 */
  tcp[12] = 0x50, tcp[13] = 0x19;   /* FIN, PSH, ACK */
  if (!long_send) {
    ip[2] = (uint8_t)((40 + payload) >> 8), ip[3] = (uint8_t)(40 + payload);
  }
  uint16_t pseudo = sum(ip + 12, 8, 6 + (long_send ? 0 : 20 + payload));
  tcp[16] = (uint8_t)(pseudo >> 8), tcp[17] = (uint8_t)pseudo;
}

static void put_tcp(unsigned payload, unsigned mss) {
  uint64_t command = DEXT | 3u | (mss ? TSE : 0);
  put(14 | 24 << 8 | 33UL << 16 | 34UL << 32 | 50UL << 40, (uint64_t)mss << 48 | 54UL << 40 | command << 24 | payload);
  uint64_t data = DEXT | IFCS | (mss ? TSE : 0);
  put(OUT, 3UL << 40 | data << 24 | 1u << 20 | 54);
  put(OUT + 54, 3UL << 40 | (data | EOP | RS) << 24 | 1u << 20 | payload);
}

static void check_tcp(const uint8_t *f, unsigned payload) {
  expect("length", (uint64_t)f[16] << 8 | f[17], 40 + payload);
  expect("IP checksum", sum(f + 14, 20, 0), 0xffff);
  expect("TCP checksum", sum(f + 34, 20 + payload, sum(f + 26, 8, 6 + 20 + payload)), 0xffff);
}

static void test_offload(void) {
  unsigned at;
  begin("e1000/checksums");
  rings(0);
  static const unsigned sizes[] = {6, 7, 1000, 1459};
  for (unsigned i = 0; i < 4; i++) {
    make_tcp(sizes[i], false);
    put_tcp(sizes[i], 0);
    expect_true("sent", go());
    expect("size", take(&at) & 0xffff, 54 + sizes[i]);
    check_tcp((uint8_t *)IN(at), sizes[i]);
    expect("payload", (uint64_t)memcmp((uint8_t *)IN(at) + 54, (uint8_t *)OUT + 54, sizes[i]), 0);
  }
  end();

  begin("e1000/segmentation");
  rings(0);
  make_tcp(3001, true);
  put_tcp(3001, 1000);
  expect_true("sent", go());
  for (unsigned i = 0; i < 4; i++) {
    unsigned payload = i < 3 ? 1000 : 1, size = payload == 1 ? 60 : 54 + payload;
    expect("size", take(&at) & 0xffff, size);
    const uint8_t *f = (uint8_t *)IN(at);
    check_tcp(f, payload);
    expect("identification", (uint64_t)f[18] << 8 | f[19], 0x1234 + i);
    expect("sequence", (uint32_t)f[38] << 24 | (uint32_t)f[39] << 16 | (uint32_t)f[40] << 8 | f[41],
           0xffffff00u + 1000 * i);
    expect("flags", f[47], i < 3 ? 0x10 : 0x19);
    expect("payload", (uint64_t)memcmp(f + 54, (uint8_t *)OUT + 54 + 1000 * i, payload), 0);
  }
  expect("and no more", take(&at), 0);
  end();
}

/* ---- interrupt, counters ---- */

static uint32_t causes;
static void acknowledge(struct frame *f) {
  (void)f;
  causes |= *reg(ICR);
  lapic_eoi();
}

static void test_interrupt(void) {
  unsigned at, pin = 20 + (unsigned)(config >> 15 & 3);
  volatile uint64_t *n = &irq_count[PIN_VECTOR];
  begin("e1000/intx");
  rings(0);
  (void)*reg(ICR);
  irq_handler[PIN_VECTOR] = acknowledge;
  *n = causes = 0;
  io_apic_write_entry(pin, LEVEL | PIN_VECTOR);
  sti();
  *reg(ICS) = LSC;
  drain();
  sti();
  expect("masked", *n, 0);
  *reg(IMS) = LSC;
  expect_true("unmasked", wait_for(n, 1));
  expect("cause", causes & LSC, LSC);
  expect("cleared by reading", *reg(ICR), 0);
  *reg(IMC) = 0xffffffff;
  expect("mask", *reg(IMS), 0);
  causes = 0;
  *reg(IMS) = RXT0;
  expect_true("sent", send(mac, 60));
  expect_true("came", wait_for(n, 2));
  expect("cause", causes & RXT0, RXT0);
  expect("frame", take(&at) & 0xffff, 60);
  *reg(IMC) = RXT0;
  *reg(IMS) = TXDW;
  uint64_t before = *n;
  expect_true("sent", send(mac, 60));
  expect_true("came", wait_for(n, before + 1));
  *reg(IMC) = TXDW;
  cli();
  (void)*reg(ICR);
  io_apic_write_entry(pin, MASKED);
  irq_handler[PIN_VECTOR] = NULL;
  end();

  begin("e1000/counters");
  (void)*reg(GPRC), (void)*reg(GPTC);
  rings(0);
  for (unsigned i = 0; i < 3; i++)
    expect_true("sent", send(mac, 60));
  expect("out", *reg(GPTC), 3);
  expect_true("in", take(&at) && take(&at) && take(&at));
  expect("in", *reg(GPRC), 3);
  expect("again", *reg(GPTC) + *reg(GPRC), 0);
  end();
}

void test_e1000(void) {
  if (!find())
    return;
  pic_init();
  set_up();
  test_registers();
  test_eeprom();
  *reg(CTRL) |= 1u << 6;      /* look at the PHY's link */
  set_phy(0, 0x4140);         /* what is sent comes back */
  test_frames();
  test_filters();
  test_offload();
  test_interrupt();
  *reg(TCTL) = *reg(RCTL) = 0;
  set_phy(0, 0x1140);
}
