/* Contents for tests (lib/pattern.c): a sequence of words that is cheap to write, sums up like random data,
 * and can be checked word by word with nothing but its two numbers.
 */
#pragma once
#include "types.h"

struct pattern {
	u64 start, step;		/* word i is start + i * step */
};

/* Another one for each pair of numbers. */
struct pattern make_pattern(u64 seed, u64 index);

#define PATTERN_BLOCK	64		/* sizes are multiples of it */

/* Writes it, and returns the checksum of what was written added to sum. */
u32 pattern_fill(struct pattern p, void *buf, u64 size, u32 sum);
/* Offset of the first word that is another, -1 if there is none. */
s64 pattern_check(struct pattern p, const void *buf, u64 size);
/* The Internet checksum before its last folding: 32-bit ones' complement sum (RFC 1071), as Linux's
 * csum_partial() has it. */
u32 csum_partial(const void *buf, u64 size, u32 sum);
