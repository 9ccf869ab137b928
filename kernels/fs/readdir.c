/* Listing directories. A position is 0 for ".", 1 for "..", and 1 + cookie for a pinned name: names keep theirs, so
 * that what is removed or made while a program lists makes it neither miss nor repeat another one. */
#include "vfs.h"
#include "string.h"
#include "syscall.h"
#include "uaccess.h"

struct linux_dirent64 {
	u64 ino;
	s64 off;
	u16 reclen;
	u8 type;
	char name[];
};

struct listing {
	u8 *user;
	u64 room, used;
	int err;
	loff_t *pos;
};

/* "." and ".."; false when the buffer is full. */
bool dir_iterate_dots(struct file *f, void *ctx, filldir_t fill, loff_t *pos)
{
	struct dentry *d = f->dentry;

	if (*pos == 0) {
		if (fill(ctx, ".", 1, d->inode->ino, S_IFDIR))
			return false;
		*pos = 1;
	}
	if (*pos == 1) {
		if (fill(ctx, "..", 2, d->parent->inode->ino, S_IFDIR))
			return false;
		*pos = 2;
	}
	return true;
}

int dir_iterate(struct file *f, void *ctx, filldir_t fill, loff_t *pos)
{
	struct dentry *child;

	if (!dir_iterate_dots(f, ctx, fill, pos))
		return 0;
	mutex_lock(&namespace_lock);
	list_for_each_entry(child, &f->dentry->children, sibling) {
		if ((loff_t)child->cookie + 1 < *pos)
			continue;
		if (fill(ctx, child->name, (u32)strlen(child->name), child->inode->ino, child->inode->mode & S_IFMT))
			break;
		*pos = (loff_t)child->cookie + 2;
	}
	mutex_unlock(&namespace_lock);
	return 0;
}

static loff_t dir_llseek(struct file *f, loff_t off, int whence)
{
	if (whence == 1)
		off += f->pos;
	else if (whence != 0)
		return -EINVAL;
	if (off < 0)
		return -EINVAL;
	f->pos = off;
	return off;
}

const struct file_ops dir_file_ops = { .iterate = dir_iterate, .llseek = dir_llseek };

static int fill_one(void *ctx, const char *name, u32 len, u64 ino, u32 type)
{
	struct listing *l = ctx;
	u64 size = ALIGN_UP(offsetof(struct linux_dirent64, name) + len + 1, 8UL);
	u8 buf[sizeof(struct linux_dirent64) + NAME_MAX + 16];
	struct linux_dirent64 *e = (struct linux_dirent64 *)buf;

	if (size > l->room - l->used) {
		l->err = l->used ? 0 : -EINVAL;
		return 1;
	}
	memset(buf, 0, size);
	e->ino = ino;
	e->off = *l->pos + 1;
	e->reclen = (u16)size;
	e->type = (u8)(type >> 12);
	memcpy(e->name, name, len);
	if (copy_to_user(l->user + l->used, buf, size)) {
		l->err = -EFAULT;
		return 1;
	}
	l->used += size;
	return 0;
}

SYSCALL_DEFINE3(getdents64, 217, int, fd, void *, user, u64, size)
{
	struct file *f = fget(fd);
	struct listing l = { .user = user, .room = min(size, 1UL << 20) };
	int err;

	if (!f)
		return -EBADF;
	if (!f->ops->iterate) {
		fput(f);
		return -ENOTDIR;
	}
	l.pos = &f->pos;
	mutex_lock(&f->pos_lock);
	err = f->dentry->unlinked ? -ENOENT : f->ops->iterate(f, &l, fill_one, &f->pos);
	mutex_unlock(&f->pos_lock);
	fput(f);
	return err ? err : l.used ? (s64)l.used : l.err;
}
