/* Addresses that somebody claims.
 *
 * What the previous kernel left in memory may be wrong in any way, so an address out of it is a type of its own,
 * claim_t, which cannot be used as an address. The functions here and the stamp on a preserved block (restore.c) are
 * what turns a claim into an address.
 */
#pragma once
#include "../../kernels/include/types.h"

typedef struct {
	u64 value;
} claim_t;

static inline claim_t claim(u64 value) { return (claim_t){ value }; }

/* Whether [claimed, claimed + size) is RAM, all of it, and begins at a multiple of align. For use when memblock knows
 * memory and the direct map is there. size > 0. */
bool claim_is_ram(claim_t c, u64 size, u64 align);
/* The same, and no byte of it is in scratch, where this kernel's own memory is. */
bool claim_is_outside(claim_t c, u64 size, u64 align);
