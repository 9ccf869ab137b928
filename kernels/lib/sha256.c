/* SHA-256 (FIPS 180-4). Compiled into the kernel, which makes the digest of a loaded image, and into the purgatory,
 * which verifies it; so it calls nothing. Both go over every byte of the next kernel and its initramfs: this is most
 * of what a kexec costs, counted in instructions, and the reason why the rounds are unrolled. A round's K and W[t] go
 * into one three-operand addition, rotations are nested (rotr(x, 2) ^ rotr(x, 13) ^ rotr(x, 22) is three rotations
 * and two XORs on one register when taken from the inside out), and b ^ c of a round is a ^ b of the one before.
 */
#include "sha256.h"

#define ROTR(x, n)	((x) >> (n) | (x) << (32 - (n)))
#define SIGMA0(x)	ROTR(ROTR(ROTR(x, 9) ^ (x), 11) ^ (x), 2)	/* 2, 13, 22 */
#define SIGMA1(x)	ROTR(ROTR(ROTR(x, 14) ^ (x), 5) ^ (x), 6)	/* 6, 11, 25 */
#define sigma0(x)	(ROTR(ROTR(x, 11) ^ (x), 7) ^ (x) >> 3)		/* 7, 18 */
#define sigma1(x)	(ROTR(ROTR(x, 2) ^ (x), 17) ^ (x) >> 10)	/* 17, 19 */

/* h += k + w in one instruction; and a sum that is used twice is computed once, which the compiler has to be told
 * because it would rather regroup the terms of both uses. */
#define ADD_KW(h, k, w)	__asm__("leal %c2(%q0,%q1), %0" : "+r"(h) : "r"(w), "i"((s32)(k)))
#define SETTLE(h)	__asm__("" : "+r"(h))

/* One round, t = 0..63: the state is in a..h, which change roles instead of places. ab is a ^ b, bc that of the
 * round before; the majority of a, b, c is b where a and b agree and c otherwise. */
#define ROUND(a, b, c, d, e, f, g, h, ab, bc, k, w) do {		\
		ADD_KW(h, k, w);					\
		(h) += (((f) ^ (g)) & (e)) ^ (g);			\
		(h) += SIGMA1(e);					\
		SETTLE(h);						\
		(d) += (h);						\
		(ab) = (a) ^ (b);					\
		(bc) = ((ab) & (bc)) ^ (b);				\
		(h) += (bc);						\
		(h) += SIGMA0(a);					\
	} while (0)

/* W[t] of the first sixteen rounds, and of the others; w[] holds the last sixteen. */
#define FIRST(t)	(w[t] = __builtin_bswap32(word(data, t)))
#define NEXT(t)		(w[(t) & 15] += sigma1(w[((t) - 2) & 15]) + w[((t) - 7) & 15] + sigma0(w[((t) - 15) & 15]))

#define EIGHT(W, t, k0, k1, k2, k3, k4, k5, k6, k7)		\
	ROUND(a, b, c, d, e, f, g, h, x, y, k0, W(t));		\
	ROUND(h, a, b, c, d, e, f, g, y, x, k1, W(t + 1));	\
	ROUND(g, h, a, b, c, d, e, f, x, y, k2, W(t + 2));	\
	ROUND(f, g, h, a, b, c, d, e, y, x, k3, W(t + 3));	\
	ROUND(e, f, g, h, a, b, c, d, x, y, k4, W(t + 4));	\
	ROUND(d, e, f, g, h, a, b, c, y, x, k5, W(t + 5));	\
	ROUND(c, d, e, f, g, h, a, b, x, y, k6, W(t + 6));	\
	ROUND(b, c, d, e, f, g, h, a, y, x, k7, W(t + 7))

static inline u32 word(const u8 *data, unsigned int t)
{
	return get_unaligned_u32(data + 4 * t);
}

static void blocks(u32 state[8], const u8 *data, u64 n)
{
	u32 w[16];

	for (; n; n--, data += 64) {
		u32 a = state[0], b = state[1], c = state[2], d = state[3];
		u32 e = state[4], f = state[5], g = state[6], h = state[7];
		u32 x, y = b ^ c;

		EIGHT(FIRST, 0, 0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5);
		EIGHT(FIRST, 8, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174);
		EIGHT(NEXT, 16, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da);
		EIGHT(NEXT, 24, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967);
		EIGHT(NEXT, 32, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85);
		EIGHT(NEXT, 40, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070);
		EIGHT(NEXT, 48, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3);
		EIGHT(NEXT, 56, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2);
		state[0] += a;
		state[1] += b;
		state[2] += c;
		state[3] += d;
		state[4] += e;
		state[5] += f;
		state[6] += g;
		state[7] += h;
	}
}

void sha256_init(struct sha256 *s)
{
	static const u32 initial[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	};

	for (unsigned int i = 0; i < 8; i++)
		s->state[i] = initial[i];
	s->count = 0;
}

void sha256_update(struct sha256 *s, const void *data, u64 size)
{
	const u8 *p = data;
	u64 at = s->count % 64;

	s->count += size;
	if (at) {
		while (size && at < 64) {
			s->buf[at++] = *p++;
			size--;
		}
		if (at < 64)
			return;
		blocks(s->state, s->buf, 1);
	}
	blocks(s->state, p, size / 64);
	p += size / 64 * 64;
	for (at = 0; at < size % 64; at++)
		s->buf[at] = p[at];
}

void sha256_final(struct sha256 *s, u8 out[32])
{
	u64 bits = s->count * 8;
	unsigned int at = s->count % 64;

	s->buf[at++] = 0x80;
	if (at > 56) {
		while (at < 64)
			s->buf[at++] = 0;
		blocks(s->state, s->buf, 1);
		at = 0;
	}
	while (at < 56)
		s->buf[at++] = 0;
	put_unaligned_u64(__builtin_bswap64(bits), s->buf + 56);
	blocks(s->state, s->buf, 1);
	for (unsigned int i = 0; i < 8; i++)
		put_unaligned_u32(__builtin_bswap32(s->state[i]), out + 4 * i);
}
