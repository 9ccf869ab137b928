/* What a kernel does once it is up (kernel/workload.c, kho/guest/test_kho.c), and its place in the chain. */
#pragma once
#include "types.h"

/* Kexecs with KHO since the cold boot, which is 0. Known from the handover, once the direct map is there. */
u32 kernel_generation(void);
/* Was it one of ours that started this kernel, and expects it to find what it saved? */
bool previous_was_ours(void);
/* Will this kernel start another one? The line of /boot/chain for this generation, without its newline;
 * NULL if it is the last. Valid for ever. */
const char *chain_line(void);

/* The kernel_init thread ends here: tests, then the next kernel or the verdict and power off. */
_Noreturn void workload_run(void);

/* Something that was to be verified is not as it should be. The first reason is the verdict. */
void verdict_fail(const char *fmt, ...) __printf(1, 2);
bool verdict_failed(void);
/* Prints the verdict and switches off. */
_Noreturn void verdict_finish(void);

/* The KHO test (kho/guest/test_kho.c). Restores at device_initcall; saves when the workload asks for it.
 * Errors go into the verdict. */
void test_kho_save(void);
