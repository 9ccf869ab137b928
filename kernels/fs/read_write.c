/* read(2), write(2) and their relatives. */
#include "vfs.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define IOV_MAX		1024

static bool is_silent_device(const struct file *f) { return S_ISCHR(f->inode->mode) && !f->ops->read && !f->ops->write; }

/* A device that is neither read nor written says that when it is asked to, not that it has no position. */
bool takes_position(const struct file *f) { return has_position(f) || is_silent_device(f); }

bool has_position(const struct file *f) { return f->ops->llseek && f->ops->llseek != noop_llseek; }

bool beyond(loff_t pos, u64 size) { return pos < 0 || pos + size > SHMEM_SIZE_MAX; }

static ssize_t do_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	if (!(f->mode & FMODE_READ))
		return -EBADF;
	if (S_ISDIR(f->inode->mode))
		return -EISDIR;
	if (!f->ops->read)
		return -EINVAL;
	if (!access_ok(user, size))
		return -EFAULT;
	if (beyond(*pos, size))
		return -EINVAL;
	return f->ops->read(f, user, min(size, RW_MAX), pos);
}

static ssize_t do_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	if (!(f->mode & FMODE_WRITE))
		return -EBADF;
	if (!f->ops->write)
		return -EINVAL;
	if (!access_ok(user, size))
		return -EFAULT;
	if (beyond(*pos, size))
		return -EINVAL;
	return f->ops->write(f, user, min(size, RW_MAX), pos);
}

/* With the file's own position, which one call at a time moves. Files without one are not held: their calls may sleep
 * for long, and another may be what wakes them. */
static ssize_t with_position(struct file *f, void *user, u64 size, ssize_t (*fn)(struct file *, void *, u64, loff_t *))
{
	ssize_t n;

	if (!has_position(f))
		return fn(f, user, size, &f->pos);
	mutex_lock(&f->pos_lock);
	n = fn(f, user, size, &f->pos);
	mutex_unlock(&f->pos_lock);
	return n;
}

static ssize_t read_at(struct file *f, void *user, u64 size, loff_t *pos) { return do_read(f, user, size, pos); }
static ssize_t write_at(struct file *f, void *user, u64 size, loff_t *pos) { return do_write(f, user, size, pos); }

typedef ssize_t (*rw_fn)(struct file *, void *, u64, loff_t *);

static s64 rw(int fd, void *user, u64 size, rw_fn fn)
{
	struct file *f = fget(fd);
	s64 n;

	if (!f)
		return -EBADF;
	n = with_position(f, user, size, fn);
	fput(f);
	return n;
}

static s64 prw(int fd, void *user, u64 size, loff_t pos, rw_fn fn)
{
	struct file *f;
	s64 n;

	if (pos < 0)
		return -EINVAL;
	f = fget(fd);
	if (!f)
		return -EBADF;
	n = takes_position(f) ? fn(f, user, size, &pos) : -ESPIPE;
	fput(f);
	return n;
}

SYSCALL_DEFINE3(read, 0, int, fd, void *, user, u64, size)
{
	return rw(fd, user, size, read_at);
}
SYSCALL_DEFINE3(write, 1, int, fd, void *, user, u64, size)
{
	return rw(fd, user, size, write_at);
}
SYSCALL_DEFINE4(pread64, 17, int, fd, void *, user, u64, size, loff_t, pos)
{
	return prw(fd, user, size, pos, read_at);
}
SYSCALL_DEFINE4(pwrite64, 18, int, fd, void *, user, u64, size, loff_t, pos)
{
	return prw(fd, user, size, pos, write_at);
}

/* A vector is moved piece by piece; a short piece ends it, an error counts only if nothing was moved before. */
static s64 vector(struct file *f, const struct iovec *uvec, u64 count, loff_t *pos, rw_fn fn)
{
	struct iovec *vec;
	s64 done = 0, n = 0;

	if (count > IOV_MAX)
		return -EINVAL;
	if (!count)
		return 0;
	vec = kmalloc(count * sizeof(*vec), GFP_KERNEL);
	if (!vec)
		return -ENOMEM;
	if (copy_from_user(vec, uvec, count * sizeof(*vec)))
		n = -EFAULT;
	for (u64 i = 0; !n && i < count; i++)
		if ((s64)vec[i].len < 0)
			n = -EINVAL;
	if (!n && f->ops->vector) {
		bool write = fn == write_at;

		done = f->mode & (write ? FMODE_WRITE : FMODE_READ) ? f->ops->vector(f, vec, count, write) : -EBADF;
		kfree(vec);
		return done;
	}
	for (u64 i = 0; n >= 0 && i < count; i++) {
		if (!vec[i].len)
			continue;
		n = fn(f, vec[i].base, vec[i].len, pos);
		if (n > 0)
			done += n;
		if (n < (s64)vec[i].len)
			break;
	}
	kfree(vec);
	return done ? done : n;
}

static s64 rw_vector(int fd, const struct iovec *vec, u64 count, const loff_t *at, rw_fn fn)
{
	struct file *f = fget(fd);
	loff_t pos = at ? *at : 0;
	s64 n;

	if (!f)
		return -EBADF;
	if (at) {
		n = pos < 0 ? -EINVAL : has_position(f) ? vector(f, vec, count, &pos, fn) : -ESPIPE;
	} else {
		if (has_position(f))
			mutex_lock(&f->pos_lock);
		n = vector(f, vec, count, &f->pos, fn);
		if (has_position(f))
			mutex_unlock(&f->pos_lock);
	}
	fput(f);
	return n;
}

SYSCALL_DEFINE3(readv, 19, int, fd, const struct iovec *, vec, u64, count)
{
	return rw_vector(fd, vec, count, NULL, read_at);
}
SYSCALL_DEFINE3(writev, 20, int, fd, const struct iovec *, vec, u64, count)
{
	return rw_vector(fd, vec, count, NULL, write_at);
}
SYSCALL_DEFINE4(preadv, 295, int, fd, const struct iovec *, vec, u64, count, loff_t, pos)
{
	return rw_vector(fd, vec, count, &pos, read_at);
}
SYSCALL_DEFINE4(pwritev, 296, int, fd, const struct iovec *, vec, u64, count, loff_t, pos)
{
	return rw_vector(fd, vec, count, &pos, write_at);
}

SYSCALL_DEFINE3(lseek, 8, int, fd, loff_t, off, int, whence)
{
	struct file *f = fget(fd);
	loff_t pos;

	if (!f)
		return -EBADF;
	if (whence < 0 || whence > SEEK_HOLE) {
		pos = -EINVAL;
	} else if (!has_position(f)) {
		pos = f->ops->llseek ? f->pos : -ESPIPE;
	} else {
		mutex_lock(&f->pos_lock);
		pos = f->ops->llseek(f, off, whence);
		mutex_unlock(&f->pos_lock);
	}
	fput(f);
	return pos;
}

/* Everything is in memory: there is nothing to write back. */
static s64 sync_fd(int fd)
{
	struct file *f = fget(fd);
	s64 ret = -EBADF;

	if (f) {
		ret = S_ISREG(f->inode->mode) || S_ISDIR(f->inode->mode) ? 0 : -EINVAL;
		fput(f);
	}
	return ret;
}
SYSCALL_DEFINE1(fsync, 74, int, fd)
{
	return sync_fd(fd);
}
SYSCALL_DEFINE1(fdatasync, 75, int, fd)
{
	return sync_fd(fd);
}
SYSCALL_DEFINE1(syncfs, 306, int, fd)
{
	return sync_fd(fd);
}
SYSCALL_DEFINE0(sync, 162)
{
	return 0;
}
SYSCALL_DEFINE4(fadvise64, 221, int, fd, loff_t, off, loff_t, len, int, advice)
{
	struct file *f;
	s64 ret;

	f = fget(fd);
	if (!f)
		return -EBADF;
	ret = S_ISFIFO(f->inode->mode) ? -ESPIPE : off < 0 || len < 0 || advice < 0 || advice > 5 ? -EINVAL : 0;
	fput(f);
	return ret;
}

/* ---- the kernel's own access to files in memory ---- */

/* Moves bytes between buf and the folio at *pos; how many. */
static ssize_t kernel_rw(struct file *f, void *buf, u64 size, loff_t *pos, bool write)
{
	struct inode *inode = f->inode;
	u64 done = 0;

	if (!shmem_inode(inode))
		return -EINVAL;
	while (done < size) {
		u64 at = (u64)*pos, n = min(size - done, PAGE_SIZE - at % PAGE_SIZE);
		struct folio *folio;
		u8 *p = NULL;

		if (!write && at >= inode->size)
			break;
		mutex_lock(&inode->shmem->mapping.lock);
		folio = write ? shmem_get_folio(inode->shmem, PFN_DOWN(at), 0)
			      : mapping_find(&inode->shmem->mapping, PFN_DOWN(at));
		if (folio && !IS_ERR(folio))
			p = (u8 *)folio_address(folio) + (at - PFN_PHYS(folio->page.index));
		if (!write)
			n = min(n, inode->size - at);
		if (p && write)
			memcpy(p, (u8 *)buf + done, n);
		else if (p)
			memcpy((u8 *)buf + done, p, n);
		else if (!write)
			memset((u8 *)buf + done, 0, n);
		mutex_unlock(&inode->shmem->mapping.lock);
		if (write && !p)
			return done ? (ssize_t)done : -ENOMEM;
		done += n;
		*pos += (loff_t)n;
		if (write && (u64)*pos > inode->size)
			inode->size = (u64)*pos;
	}
	return (ssize_t)done;
}

ssize_t kernel_read(struct file *f, void *buf, u64 size, loff_t *pos)
{
	if (f->ops->contents) {
		u64 n = (u64)*pos < f->inode->size ? min(size, f->inode->size - (u64)*pos) : 0;

		memcpy(buf, (const u8 *)f->ops->contents(f) + *pos, n);
		*pos += (loff_t)n;
		return (ssize_t)n;
	}
	return kernel_rw(f, buf, size, pos, false);
}

ssize_t kernel_write(struct file *f, const void *buf, u64 size, loff_t *pos)
{
	return kernel_rw(f, (void *)buf, size, pos, true);
}

ssize_t kernel_read_file(struct file *f, void **buf, u64 max)
{
	u64 size = f->inode->size;
	loff_t pos = 0;
	ssize_t n;

	if (!S_ISREG(f->inode->mode))
		return -EINVAL;
	if (size > max)
		return -EFBIG;
	*buf = vmalloc(size ? size : 1);
	if (!*buf)
		return -ENOMEM;
	n = kernel_read(f, *buf, size, &pos);
	if (n != (ssize_t)size) {
		vfree(*buf);
		*buf = NULL;
		return n < 0 ? n : -EIO;
	}
	return n;
}
