/* The kernel's access to the memory of the running program (mm/uaccess.c). Addresses of a program are claims: they are
 * used only through these. A page that is not there is brought in; an address that is not the program's ends the
 * copy. May sleep.
 */
#pragma once
#include "types.h"

#define USER_END	0x00007ffffffff000UL	/* first address that no program has */

static inline bool access_ok(const void *user, u64 size)
{
	return size <= USER_END && (u64)user <= USER_END - size;
}

/* Bytes that were NOT copied, from the end: 0 is success. */
u64 copy_from_user(void *dst, const void *user, u64 size);
u64 copy_to_user(void *user, const void *src, u64 size);
u64 clear_user(void *user, u64 size);

/* Length without the terminator; `size` when there is none in the first size bytes; -EFAULT. */
ssize_t strncpy_from_user(char *dst, const char *user, u64 size);

/* For structures that grow: the program says how large its one is (usize). Extra bytes must be zero (-E2BIG), missing
 * ones are zero. 0, -E2BIG, -EFAULT. */
int copy_struct_from_user(void *dst, u64 ksize, const void *user, u64 usize);

#define get_user(x, user)	(copy_from_user(&(x), (user), sizeof(x)) ? -EFAULT : 0)
#define put_user(x, user)	({ __typeof__(*(user)) v_ = (x); copy_to_user((user), &v_, sizeof(v_)) ? -EFAULT : 0; })

/* The fixup address of an instruction that may fault on user memory, 0 if it is none (.ex_table). */
u64 search_exception_table(u64 rip);
