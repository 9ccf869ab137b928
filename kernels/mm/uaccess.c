/* The kernel's access to programs' memory: bounds here, the copies in arch/uaccess.S. */
#include "uaccess.h"
#include "errno.h"

u64 __copy_user(void *dst, const void *src, u64 size);
u64 __clear_user(void *dst, u64 size);
s64 __strncpy_user(char *dst, const char *src, u64 size);

struct exception {
	u64 rip, fixup;
};
extern const struct exception __ex_table_start[], __ex_table_end[];

u64 search_exception_table(u64 rip)
{
	for (const struct exception *e = __ex_table_start; e < __ex_table_end; e++)
		if (e->rip == rip)
			return e->fixup;
	return 0;
}

/* What of [p, p + size) may be a program's. */
static u64 allowed(const void *p, u64 size)
{
	return (u64)p >= USER_END ? 0 : min(size, USER_END - (u64)p);
}

u64 copy_from_user(void *dst, const void *user, u64 size)
{
	u64 n = allowed(user, size);

	return size - n + __copy_user(dst, user, n);
}

u64 copy_to_user(void *user, const void *src, u64 size)
{
	u64 n = allowed(user, size);

	return size - n + __copy_user(user, src, n);
}

u64 clear_user(void *user, u64 size)
{
	u64 n = allowed(user, size);

	return size - n + __clear_user(user, n);
}

ssize_t strncpy_from_user(char *dst, const char *user, u64 size)
{
	u64 n = allowed(user, size);
	s64 len = __strncpy_user(dst, user, n);

	return len == (s64)n && n < size ? -EFAULT : len;
}

int copy_struct_from_user(void *dst, u64 ksize, const void *user, u64 usize)
{
	u64 n = min(ksize, usize);

	for (u64 at = n; at < usize; ) {
		u8 extra[64];
		u64 part = min(usize - at, (u64)sizeof(extra)), left = copy_from_user(extra, (const u8 *)user + at, part);

		for (u64 i = 0; i < part - left; i++)	/* what comes first decides */
			if (extra[i])
				return -E2BIG;
		if (left)
			return -EFAULT;
		at += part;
	}
	if (copy_from_user(dst, user, n))
		return -EFAULT;
	__builtin_memset((u8 *)dst + n, 0, ksize - n);
	return 0;
}
