/* Negative controls: `break=CLASS[:N]` makes the kernel that saves do one thing wrong, and something has to
 * notice (kernel/breakage.c has the classes).
 *
 *	if (breaks("digest", &n))	// break: the digest of a segment
 *		segment[n % count].digest[0] ^= 1;
 */
#pragma once
#include "types.h"

/* Is this class to be broken? *n becomes N, default 0. n may be NULL. */
bool breaks(const char *class, u64 *n);
