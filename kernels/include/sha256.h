/* SHA-256 (FIPS 180-4); lib/sha256.c is compiled into the kernel and into the purgatory. */
#pragma once
#include "types.h"

#define SHA256_SIZE	32

struct sha256 {
	u32 state[8];
	u64 count;			/* bytes so far */
	u8 buf[64];			/* the last count % 64 of them */
};
void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *data, u64 size);
void sha256_final(struct sha256 *s, u8 out[SHA256_SIZE]);
