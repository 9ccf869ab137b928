/* DMA remapping reporting table (VT-d D51397, chapter 8): where the unit is, and under which requester ids the I/O APICs
 * send their interrupts. Pure.
 *
 * There must be one unit; whether the table says that it has all functions (INCLUDE_PCI_ALL) or lists them one by one is
 * the same then. A machine with several gets remapping for none: functions of the others would not be under control.
 */
#include "dmar.h"

#define HEADER		48
#define TYPE_UNIT	0
#define UNIT_HEADER	16
#define SCOPE_IO_APIC	3
#define SCOPE_HEADER	6

static u16 get16(const u8 *p) { return (u16)(p[0] | p[1] << 8); }

static bool parse_scopes(struct dmar *d, const u8 *p, u64 size)
{
	for (u64 at = 0; at < size; at += p[at + 1]) {
		const u8 *s = p + at;

		if (size - at < SCOPE_HEADER + 2 || s[1] < SCOPE_HEADER + 2 || s[1] > size - at)
			return false;
		if (s[0] != SCOPE_IO_APIC)
			continue;
		/* behind a bridge its bus number would have to be asked for: no I/O APIC is there */
		if (s[1] != SCOPE_HEADER + 2 || d->nr_io_apics == DMAR_IO_APICS)
			return false;
		d->io_apics[d->nr_io_apics].id = s[4];
		d->io_apics[d->nr_io_apics++].source = (u16)(s[5] << 8 | (s[6] & 31) << 3 | (s[7] & 7));
	}
	return true;
}

bool dmar_parse(struct dmar *d, const u8 *table, u64 size)
{
	u32 units = 0;

	*d = (struct dmar){ 0 };
	if (size < HEADER)
		return false;
	d->interrupts = table[37] & 1;
	for (u64 at = HEADER; at < size; at += get16(table + at + 2)) {
		const u8 *p = table + at;
		u64 length = size - at < 4 ? 0 : get16(p + 2);

		if (length < 4 || length > size - at)
			return false;
		if (get16(p) != TYPE_UNIT)
			continue;
		if (length < UNIT_HEADER || units++ || get16(p + 6))
			return false;
		d->registers = get_unaligned_u64(p + 8);
		if (!d->registers || d->registers & 0xfff || d->registers >> 46 ||
		    !parse_scopes(d, p + UNIT_HEADER, length - UNIT_HEADER))
			return false;
	}
	return units == 1;
}
