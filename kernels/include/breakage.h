/* Negative controls: `break=CLASS[:N]` makes the kernel that saves do one thing wrong, and something has to notice
 * (kernel/breakage.c has the classes).
 *
 *	if (breaks("scratch", &n))	// break: an entry of the scratch array that goes to the next kernel
 *		scratch[n % count].size += PAGE_SIZE;
 */
#pragma once
#include "types.h"

/* Is this class to be broken? *n becomes N, default 0. n may be NULL. */
bool breaks(const char *class, u64 *n);
