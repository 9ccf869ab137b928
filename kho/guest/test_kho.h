/* Between the two parts of the KHO test: test_kho.c (folios, Linux's format) and test_areas.c (everything
 * else, in a sub-tree of its own).
 */
#pragma once
#include "../../kernels/include/types.h"
#include "abi.h"

#define TEST_KHO_SUBTREE	"kho_test"
#define TEST_KHO_COMPATIBLE	"kho-test-v1"
#define TEST_KHO_MAGIC		0x4b484f21U

#define TEST_AREAS_SUBTREE	"luemu_test"
#define TEST_AREAS_COMPATIBLE	"luemu-test-v1"

/* Seed of all contents that the previous kernel wrote; false if it was no kernel of ours. Verifies the
 * areas, with errors in the verdict, and frees them. */
bool test_areas_restore(u64 *seed);
/* 0 or -errno, and then nothing is left behind. */
int test_areas_save(u64 seed);
/* Negative controls that act between saving and the jump. */
void test_areas_break(void);

/* The same in the tree (test_break.c). */
void test_tree_break(void);
/* The array for the next kernel: kho_scratch, or one that is wrong. */
const struct kho_scratch *test_scratch_break(void);

/* An FDT of this compatible string in the sub-tree: 0, -ENOENT, or -EINVAL with the reason in the verdict. */
int test_retrieve_fdt(const char *name, const char *compatible, void **fdt);
