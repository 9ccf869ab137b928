/* Tests that run inside the kernel with `selftest=on`. Each part has a function that checks it with CHECK()
 * and returns nothing; kernel/selftest.c counts and prints "selftest NAME: N checks, F failed".
 */
#pragma once
#include "types.h"

/* Counts a check; one that fails is printed, and the test goes on. The value of the condition. */
#define CHECK(condition) selftest_check((condition), __FILE__, __LINE__, #condition)
bool selftest_check(bool ok, const char *file, int line, const char *text);

void lib_selftest(void);	/* kernel/selftest.c */
void mm_selftest(void);		/* mm/ */
void trap_selftest(void);	/* arch/ */
void sched_selftest(void);	/* kernel/ */
void kho_selftest(void);	/* kho/guest/ */

/* Runs all of them; false if a check failed. */
bool selftest_run(void);
