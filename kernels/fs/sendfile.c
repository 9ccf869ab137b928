/* sendfile(2): from a file that has a position to any other.
 *
 * What files can do takes addresses of programs. So the bytes go through memory that the program has for as long as the
 * call lasts: two copies more than need be, for one way into each file.
 */
#include "vfs.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vma.h"

#define PIECE	(64UL << 10)

static s64 move(struct file *to, struct file *from, loff_t *pos, u64 size, void *buf)
{
	u64 done = 0;

	while (done < size) {
		loff_t at = *pos;
		s64 got = from->ops->read(from, buf, min(size - done, PIECE), &at), put;

		if (got <= 0)
			return done ? (s64)done : got;
		put = !to->ops->write ? -EINVAL : to->ops->write(to, buf, (u64)got, &to->pos);
		if (put <= 0)
			return done ? (s64)done : put;
		*pos += put;
		done += (u64)put;
		if (put < got)
			break;
	}
	return (s64)done;
}

static s64 send(struct file *to, struct file *from, loff_t *at, u64 size)
{
	struct mm *mm = current_task()->mm;
	/* Positions that others move, too; always in the same order, so that two calls that go crosswise do not meet. */
	struct file *a = at ? NULL : from, *b = has_position(to) && to != a ? to : NULL;
	struct file *locked[2] = { a < b ? a : b, a < b ? b : a };
	s64 n, buf;

	if (beyond(to->pos, size) || !has_position(from) || !from->ops->read || to->flags & O_APPEND || S_ISDIR(from->inode->mode))
		return -EINVAL;
	buf = mm_map(mm, 0, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, NULL, 0);
	if (buf < 0)
		return buf;
	for (int i = 0; i < 2; i++)
		if (locked[i])
			mutex_lock(&locked[i]->pos_lock);
	n = move(to, from, at ? at : &from->pos, min(size, RW_MAX), (void *)buf);
	for (int i = 2; i-- > 0; )
		if (locked[i])
			mutex_unlock(&locked[i]->pos_lock);
	mm_unmap(mm, (u64)buf, PIECE);
	return n;
}

SYSCALL_DEFINE4(sendfile, 40, int, out, int, in, loff_t *, upos, u64, size)
{
	struct file *from, *to = NULL;
	loff_t pos = 0;
	s64 n = -EBADF;

	if (upos && get_user(pos, upos))
		return -EFAULT;
	from = fget(in);
	if (!from || !(from->mode & FMODE_READ))
		goto out;
	n = -ESPIPE;
	if (upos && !takes_position(from))
		goto out;
	n = -EINVAL;
	if (beyond(upos ? pos : from->pos, size))
		goto out;
	to = fget(out);
	n = -EBADF;
	if (to && to->mode & FMODE_WRITE)
		n = send(to, from, upos ? &pos : NULL, size);
	if (upos && put_user(pos, upos))
		n = -EFAULT;
out:
	if (to)
		fput(to);
	if (from)
		fput(from);
	return n;
}
