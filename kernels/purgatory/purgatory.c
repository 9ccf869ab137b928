/* Lets the next kernel run only if all of it arrived as it was loaded: the digest of every segment but the purgatory's
 * own is compared with the one that was made when the image was loaded. Otherwise nothing is trusted any more, this
 * machine stops, and says so on the first UART, the only device whose state can be guessed.
 */
#include "purgatory.h"

#define UART		0x3f8
#define UART_LSR	5
#define LSR_THRE	0x20		/* room for a byte */
#define PATIENCE	100000		/* looks at a UART that is not there read as "no room" */

static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" :: "a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static void put(char c)
{
	for (unsigned int i = 0; i < PATIENCE && !(inb(UART + UART_LSR) & LSR_THRE); i++)
		;
	outb(UART, (u8)c);
}

static void put_text(const char *text)
{
	for (; *text; text++)
		put(*text);
}

static void put_hex(u64 v)
{
	unsigned int shift = 60;

	while (shift && !(v >> shift & 15))
		shift -= 4;
	for (;; shift -= 4) {
		unsigned int digit = v >> shift & 15;

		put((char)(digit < 10 ? '0' + digit : 'a' + digit - 10));
		if (!shift)
			return;
	}
}

static bool verify(const struct purgatory_region *r, u8 computed[SHA256_SIZE])
{
	struct sha256 s;
	u8 differ = 0;

	sha256_init(&s);
	sha256_update(&s, (const void *)r->start, r->size);
	sha256_final(&s, computed);
	for (unsigned int i = 0; i < SHA256_SIZE; i++)
		differ |= computed[i] ^ r->digest[i];
	return !differ;
}

/* Called by entry.S. True if the next kernel may be entered. */
bool purgatory_verify(struct purgatory *p)
{
	for (u64 i = 0; i < p->nr_regions; i++) {
		if (verify(&p->region[i], p->computed))
			continue;
		p->failed = i + 1;
		put_text("purgatory: sha256 digest mismatch in segment ");
		put_hex(p->region[i].segment);
		put_text(" [mem 0x");
		put_hex(p->region[i].start);
		put_text("-0x");
		put_hex(p->region[i].start + p->region[i].size - 1);
		put_text("], the next kernel is not entered\r\n");
		return false;
	}
	return true;
}
