/* Numbers that look random and are the same in every run: xoshiro256**, seeded by `seed=` (default 1) and the
 * kexec count. Nothing here is secret. */
#pragma once
#include "types.h"

u64 get_random_u64(void);
void get_random_bytes(void *buf, u64 size);
static inline u64 get_random_below(u64 n) { return get_random_u64() % n; }
