/* ACPI tables: found, verified, and read for what the kernel needs of them (ACPI 6.5, chapter 5.2; HPET 1.0a, 3.2.4).
 *
 * Tables are firmware's word for the machine and may be wrong: lengths and checksums are verified, and a table that
 * does not hold is reported and ignored, as if it were not there. Nothing of the messages depends on where firmware
 * put things.
 *
 * There is no AML interpreter. The one thing needed from AML, the values that switch the machine off, is a constant
 * package named \_S5_ in every DSDT known, and is looked for as the bytes that such a package is encoded in.
 */
#define pr_fmt(fmt) "ACPI: " fmt
#include "acpi.h"
#include "arch.h"
#include "cpu.h"
#include "page.h"
#include "printk.h"
#include "string.h"

#define TABLES_MAX	32
#define TABLE_SIZE_MAX	(4 * MIB)
#define PHYS_MAX	(1UL << 46)
#define BIOS_START	0xe0000
#define BIOS_END	0x100000

struct acpi_header {
	char signature[4];
	u32 length;
	u8 revision, checksum;
	char oem_id[6], oem_table_id[8];
	u32 oem_revision, creator_id, creator_revision;
} __packed;
static_assert(sizeof(struct acpi_header) == 36, "ACPI 5.2.6");

struct acpi_rsdp {
	char signature[8];
	u8 checksum;			/* of the first 20 bytes */
	char oem_id[6];
	u8 revision;
	u32 rsdt;
	u32 length;			/* from here on since revision 2 */
	u64 xsdt;
	u8 extended_checksum, reserved[3];
} __packed;
static_assert(sizeof(struct acpi_rsdp) == 36, "ACPI 5.2.5.3");
#define RSDP_SIZE_1	20

/* Fixed ACPI description table: offsets of fields (5.2.9). */
#define FADT_DSDT		40
#define FADT_SMI_COMMAND	48
#define FADT_ACPI_ENABLE	52
#define FADT_PM1A_CONTROL	64
#define FADT_PM1B_CONTROL	68
#define FADT_PM_TIMER		76
#define FADT_PM_TIMER_LENGTH	91
#define FADT_FLAGS		112
#define FADT_RESET_REGISTER	116
#define FADT_RESET_VALUE	128
#define FADT_X_DSDT		140
#define FADT_X_PM1A_CONTROL	172
#define FADT_X_PM1B_CONTROL	184
#define FADT_X_PM_TIMER		208
#define FADT_FLAG_TIMER_32	(1U << 8)
#define FADT_FLAG_RESET		(1U << 10)

#define SPACE_MEMORY	0		/* first byte of a generic address */
#define SPACE_IO	1

#define PM1_SCI_ENABLE	1

struct acpi_info acpi;

static const struct acpi_header *tables[TABLES_MAX];
static unsigned int nr_tables;
static bool tables_found;

bool acpi_checksum_ok(const void *p, u64 size)
{
	const u8 *bytes = p;
	u8 sum = 0;

	for (u64 i = 0; i < size; i++)
		sum += bytes[i];
	return sum == 0;
}

static const void *map(phys_addr_t phys, u64 size)
{
	if (!phys || phys >= PHYS_MAX || size > TABLE_SIZE_MAX)
		return NULL;
	return ioremap(phys, size);
}

/* The table at this address, in full and verified; NULL, with a message, if there is no such thing. */
static const struct acpi_header *map_table(phys_addr_t phys, const char *what)
{
	const struct acpi_header *h = map(phys, sizeof(*h));
	u32 length;

	if (!h) {
		pr_err("%s is at an impossible address, ignored\n", what);
		return NULL;
	}
	length = h->length;
	if (length < sizeof(*h) || length > TABLE_SIZE_MAX) {
		pr_err("%s has an impossible length of %u bytes, ignored\n", what, length);
		return NULL;
	}
	h = map(phys, length);
	if (!h || !acpi_checksum_ok(h, length)) {
		pr_err("%s has a wrong checksum, ignored\n", what);
		return NULL;
	}
	return h;
}

const void *acpi_table(const char signature[4])
{
	for (unsigned int i = 0; i < nr_tables; i++)
		if (!memcmp(tables[i]->signature, signature, 4))
			return tables[i];
	return NULL;
}

static bool rsdp_ok(const struct acpi_rsdp *r)
{
	return !memcmp(r->signature, "RSD PTR ", 8) && acpi_checksum_ok(r, RSDP_SIZE_1) &&
	       (r->revision < 2 || (r->length >= sizeof(*r) && acpi_checksum_ok(r, sizeof(*r))));
}

static const struct acpi_rsdp *find_rsdp(void)
{
	const struct acpi_rsdp *r;
	const u8 *bios;

	if (boot_info.rsdp) {
		r = map(boot_info.rsdp, sizeof(*r));
		if (r && rsdp_ok(r))
			return r;
		pr_err("the RSDP of the boot loader is none, searching\n");
	}
	bios = map(BIOS_START, BIOS_END - BIOS_START);
	for (u64 i = 0; bios && i + sizeof(*r) <= BIOS_END - BIOS_START; i += 16) {
		r = (const struct acpi_rsdp *)(bios + i);
		if (rsdp_ok(r))
			return r;
	}
	return NULL;
}

/* All tables that the root table lists. */
static void read_root(const struct acpi_rsdp *rsdp)
{
	bool extended = rsdp->revision >= 2 && rsdp->xsdt;
	const struct acpi_header *root = map_table(extended ? rsdp->xsdt : rsdp->rsdt, extended ? "XSDT" : "RSDT");
	unsigned int size = extended ? 8 : 4;

	if (!root && extended && rsdp->rsdt) {
		extended = false;
		size = 4;
		root = map_table(rsdp->rsdt, "RSDT");
	}
	if (!root)
		return;
	if (memcmp(root->signature, extended ? "XSDT" : "RSDT", 4)) {
		pr_err("the root table has a wrong signature, ignored\n");
		return;
	}
	for (u32 at = sizeof(*root); at + size <= root->length; at += size) {
		const u8 *entry = (const u8 *)root + at;
		const struct acpi_header *h;

		h = map_table(extended ? get_unaligned_u64(entry) : get_unaligned_u32(entry), "a table");
		if (!h)
			continue;
		if (nr_tables == TABLES_MAX) {
			pr_warn("more than %d tables, the rest is ignored\n", TABLES_MAX);
			return;
		}
		tables[nr_tables++] = h;
	}
}

static u16 get_u16(const u8 *p)
{
	return (u16)(p[0] | p[1] << 8);
}

/* Multiple APIC description table (5.2.12): a list of (type, length, …). */
static void read_madt(void)
{
	const struct acpi_header *h = acpi_table("APIC");
	const u8 *p = (const u8 *)h;

	for (u32 i = 0; i < ISA_IRQS; i++)
		acpi.isa_irq[i] = (struct acpi_isa_irq){ .gsi = i };
	if (!h || h->length < 44)
		return;
	acpi.local_apic = get_unaligned_u32(p + 36);
	for (u32 at = 44; at + 2 <= h->length; at += p[at + 1]) {
		const u8 *e = p + at;
		u8 type = e[0], length = e[1];

		if (length < 2 || at + length > h->length) {
			pr_err("MADT is malformed, the rest of it is ignored\n");
			return;
		}
		if (type == 0 && length >= 8) {			/* a processor */
			acpi.nr_cpus += get_unaligned_u32(e + 4) & 1;
		} else if (type == 1 && length >= 12) {		/* I/O APIC */
			if (acpi.nr_io_apics == IO_APIC_MAX) {
				pr_warn("more than %d I/O APICs, the rest is ignored\n", IO_APIC_MAX);
				continue;
			}
			acpi.io_apic[acpi.nr_io_apics++] = (struct acpi_io_apic){
				.id = e[2], .phys = get_unaligned_u32(e + 4), .gsi_base = get_unaligned_u32(e + 8),
			};
		} else if (type == 2 && length >= 10) {		/* an ISA interrupt is elsewhere */
			u16 flags = get_u16(e + 8);

			if (e[2] != 0 || e[3] >= ISA_IRQS) {
				pr_err("MADT overrides an interrupt that ISA does not have, ignored\n");
				continue;
			}
			/* polarity 3 is low; trigger 3 is level; 0 is what the bus says: high, edge */
			acpi.isa_irq[e[3]] = (struct acpi_isa_irq){
				.gsi = get_unaligned_u32(e + 4),
				.active_low = (flags & 3) == 3, .level = (flags >> 2 & 3) == 3,
			};
			acpi.nr_overrides++;
		} else if (type == 5 && length >= 12) {		/* 64-bit address of the local APIC */
			acpi.local_apic = get_unaligned_u64(e + 4);
		}
	}
}

/* A port from an old field, unless the generic address that replaced it is there and in I/O space. */
static u16 fadt_port(const struct acpi_header *h, u32 old, u32 extended)
{
	const u8 *p = (const u8 *)h;

	if (h->length >= extended + 12 && p[extended] == SPACE_IO) {
		u64 port = get_unaligned_u64(p + extended + 4);

		if (port && port <= 0xffff)
			return (u16)port;
	}
	return h->length >= old + 4 ? (u16)get_unaligned_u32(p + old) : 0;
}

/* AML: NameOp, the name (with a root prefix or without), PackageOp, package length, number of elements, then
 * two integers: SLP_TYPa and SLP_TYPb. */
static const u8 *aml_small_integer(const u8 *p, const u8 *end, u8 *value)
{
	if (p < end && *p <= 1) {		/* ZeroOp, OneOp */
		*value = *p;
		return p + 1;
	}
	if (end - p >= 2 && *p == 0x0a) {	/* BytePrefix */
		*value = p[1];
		return p + 2;
	}
	return NULL;
}

bool acpi_find_s5(const u8 *aml, u64 size, u8 *type_a, u8 *type_b)
{
	const u8 *end = aml + size;

	for (const u8 *p = aml + 1; size && end - p >= 7; p++) {
		const u8 *q = p + 4, *package = q + 1;
		bool named = p[-1] == 0x08 || (p[-1] == '\\' && p - aml >= 2 && p[-2] == 0x08);
		u8 a, b = 0;

		if (!named || memcmp(p, "_S5_", 4) || *q != 0x12)
			continue;
		q = package + (*package >> 6) + 1;	/* its length takes 1 to 4 bytes */
		if (q >= end || !*q)
			continue;
		q = aml_small_integer(q + 1, end, &a);
		if (!q || a > 7)
			continue;
		if (!aml_small_integer(q, end, &b) || b > 7)
			b = 0;
		*type_a = a;
		*type_b = b;
		return true;
	}
	return false;
}

static void read_dsdt(const struct acpi_header *fadt)
{
	const u8 *p = (const u8 *)fadt;
	const struct acpi_header *dsdt = NULL;
	u64 at = fadt->length >= FADT_DSDT + 4 ? get_unaligned_u32(p + FADT_DSDT) : 0;

	if (fadt->length >= FADT_X_DSDT + 8 && get_unaligned_u64(p + FADT_X_DSDT))
		at = get_unaligned_u64(p + FADT_X_DSDT);
	if (at)
		dsdt = map_table(at, "DSDT");
	if (!dsdt || !acpi_find_s5((const u8 *)dsdt + sizeof(*dsdt), dsdt->length - sizeof(*dsdt), &acpi.s5_type_a,
				   &acpi.s5_type_b))
		pr_warn("no \\_S5_ in the DSDT, power off with sleep type 0\n");
}

/* Firmware hands over power management when it is told to, once. */
static void enter_acpi_mode(const struct acpi_header *h)
{
	const u8 *p = (const u8 *)h;
	u32 command = h->length >= FADT_ACPI_ENABLE + 1 ? get_unaligned_u32(p + FADT_SMI_COMMAND) : 0;

	if (!acpi.pm1a_control || !command || command > 0xffff || !p[FADT_ACPI_ENABLE] ||
	    inw(acpi.pm1a_control) & PM1_SCI_ENABLE)
		return;
	outb((u16)command, p[FADT_ACPI_ENABLE]);
	for (unsigned int tries = 0; tries < 10000; tries++)
		if (inw(acpi.pm1a_control) & PM1_SCI_ENABLE)
			return;
	pr_warn("the machine does not change to ACPI mode\n");
}

static void read_fadt(void)
{
	const struct acpi_header *h = acpi_table("FACP");
	const u8 *p = (const u8 *)h;
	u32 flags;

	if (!h)
		return;
	flags = h->length >= FADT_FLAGS + 4 ? get_unaligned_u32(p + FADT_FLAGS) : 0;
	acpi.pm1a_control = fadt_port(h, FADT_PM1A_CONTROL, FADT_X_PM1A_CONTROL);
	acpi.pm1b_control = fadt_port(h, FADT_PM1B_CONTROL, FADT_X_PM1B_CONTROL);
	if (h->length > FADT_PM_TIMER_LENGTH && p[FADT_PM_TIMER_LENGTH] == 4)
		acpi.pm_timer = fadt_port(h, FADT_PM_TIMER, FADT_X_PM_TIMER);
	acpi.pm_timer_32bit = flags & FADT_FLAG_TIMER_32;
	/* a reset register in memory or PCI configuration space is left alone: 0xcf9 does it there too */
	if (flags & FADT_FLAG_RESET && h->length > FADT_RESET_VALUE && p[FADT_RESET_REGISTER] == SPACE_IO) {
		acpi.reset_port = (u16)get_unaligned_u64(p + FADT_RESET_REGISTER + 4);
		acpi.reset_value = p[FADT_RESET_VALUE];
	}
	enter_acpi_mode(h);
	read_dsdt(h);
}

static void read_hpet(void)
{
	const struct acpi_header *h = acpi_table("HPET");
	const u8 *p = (const u8 *)h;

	if (h && h->length >= 56 && p[40] == SPACE_MEMORY)
		acpi.hpet = get_unaligned_u64(p + 44);
}

void acpi_find_tables(void)
{
	const struct acpi_rsdp *rsdp;

	if (tables_found)
		return;
	tables_found = true;
	rsdp = find_rsdp();
	if (rsdp)
		read_root(rsdp);
	else
		pr_err("no RSDP found\n");
}

void acpi_init(void)
{
	static const char used[][5] = { "FACP", "APIC", "HPET", "MCFG" };

	acpi_find_tables();
	for (unsigned int i = 0; i < ARRAY_SIZE(used); i++)
		pr_info("%s %s\n", used[i], acpi_table(used[i]) ? "found" : "missing");
	read_madt();
	read_fadt();
	read_hpet();
	pr_info("%u processors, %u I/O APICs, %u interrupt overrides\n", acpi.nr_cpus, acpi.nr_io_apics,
		acpi.nr_overrides);
}
