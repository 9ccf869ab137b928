/* A program's buffers, one or many, as one row of bytes. */
#include "vfs.h"
#include "uaccess.h"

static int buffers_move(struct buffers *b, void *kernel, u64 size, bool to_program)
{
	struct buffers before = *b;
	u64 done = 0;

	while (done < size) {
		const struct iovec *v = b->vec;
		u64 n = min(size - done, v->len - b->offset);
		u8 *user = (u8 *)v->base + b->offset, *k = (u8 *)kernel + done;

		if (to_program ? copy_to_user(user, k, n) : copy_from_user(k, user, n))
			goto fault;
		done += n;
		b->left -= n;
		b->offset += n;
		while (b->count && b->offset == b->vec->len) {
			b->vec++;
			b->count--;
			b->offset = 0;
		}
	}
	return 0;
fault:
	*b = before;
	return -EFAULT;
}

int buffers_read(struct buffers *b, void *to, u64 size) { return buffers_move(b, to, size, false); }
int buffers_write(struct buffers *b, const void *from, u64 size) { return buffers_move(b, (void *)from, size, true); }

int buffers_init(struct buffers *b, const struct iovec *vec, u64 count)
{
	*b = (struct buffers){ .vec = vec, .count = count };
	for (u64 i = 0; i < count; i++) {
		if ((s64)vec[i].len < 0)
			return -EINVAL;
		if (!access_ok(vec[i].base, vec[i].len))
			return -EFAULT;
		b->left += min(vec[i].len, RW_MAX - b->left);
	}
	while (b->count && !b->vec->len) {
		b->vec++;
		b->count--;
	}
	return 0;
}
