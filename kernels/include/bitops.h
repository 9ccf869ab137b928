/* Bits and powers of two. */
#pragma once
#include "types.h"

static inline unsigned int ctz64(u64 x) { return x ? (unsigned int)__builtin_ctzll(x) : 64; }
/* floor(log2(x)), x > 0 */
static inline unsigned int ilog2(u64 x) { return 63 - (unsigned int)__builtin_clzll(x); }
static inline bool is_power_of_2(u64 x) { return x && !(x & (x - 1)); }
static inline unsigned int popcount64(u64 x)
{
	x -= x >> 1 & 0x5555555555555555UL;
	x = (x & 0x3333333333333333UL) + (x >> 2 & 0x3333333333333333UL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fUL;
	return (unsigned int)(x * 0x0101010101010101UL >> 56);
}

static inline bool test_bit(u64 n, const u64 *map) { return map[n / 64] >> (n % 64) & 1; }
static inline void set_bit(u64 n, u64 *map) { map[n / 64] |= 1UL << (n % 64); }
static inline void clear_bit(u64 n, u64 *map) { map[n / 64] &= ~(1UL << (n % 64)); }
