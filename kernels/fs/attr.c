/* Attributes of files: permissions, owners, times, size, and whether one may. */
#include "vfs.h"
#include "ktimer.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "on_path.h"
#include "uaccess.h"

#define AT_EACCESS		0x200
#define PERM_MASK		07777U

int vfs_truncate(struct inode *inode, u64 size)
{
	int err;

	if (S_ISDIR(inode->mode))
		return -EISDIR;
	if (!inode->ops || !inode->ops->setsize)
		return -EINVAL;
	mutex_lock(&inode->lock);
	err = inode->ops->setsize(inode, size);
	if (!err)
		inode->mtime = inode->ctime = ktime_get_real_ns();
	mutex_unlock(&inode->lock);
	return err;
}

static bool owns(const struct inode *inode)
{
	return capable() || current_task()->cred.fsuid == inode->uid;
}

static int set_mode(struct inode *inode, u32 mode)
{
	if (is_anon_inode(inode))
		return -EOPNOTSUPP;
	if (!owns(inode))
		return -EPERM;
	/* F_SEAL_EXEC: who may execute it does not change any more. */
	if (inode->shmem && inode->shmem->seals & F_SEAL_EXEC && (inode->mode ^ mode) & 0111)
		return -EPERM;
	inode->mode = (inode->mode & S_IFMT) | (mode & PERM_MASK);
	inode->ctime = ktime_get_real_ns();
	return 0;
}

static int set_owner(struct inode *inode, u32 uid, u32 gid)
{
	if (is_anon_inode(inode))
		return -EOPNOTSUPP;
	if (!capable() && ((uid != ~0U && uid != inode->uid) || (gid != ~0U && gid != current_task()->cred.fsgid)))
		return -EPERM;
	if (uid != ~0U)
		inode->uid = uid;
	if (gid != ~0U)
		inode->gid = gid;
	inode->ctime = ktime_get_real_ns();
	return 0;
}

SYSCALL_DEFINE2(chmod, 90, const char *, path, u32, mode)
{
	return ON_PATH(AT_FDCWD, path, LOOKUP_FOLLOW, set_mode(d->inode, mode));
}
SYSCALL_DEFINE2(fchmod, 91, int, fd, u32, mode)
{
	return ON_FD(fd, set_mode(f->inode, mode));
}
SYSCALL_DEFINE3(fchmodat, 268, int, dirfd, const char *, path, u32, mode)
{
	return ON_PATH(dirfd, path, LOOKUP_FOLLOW, set_mode(d->inode, mode));
}
SYSCALL_DEFINE3(chown, 92, const char *, path, u32, uid, u32, gid)
{
	return ON_PATH(AT_FDCWD, path, LOOKUP_FOLLOW, set_owner(d->inode, uid, gid));
}
SYSCALL_DEFINE3(lchown, 94, const char *, path, u32, uid, u32, gid)
{
	return ON_PATH(AT_FDCWD, path, 0, set_owner(d->inode, uid, gid));
}
SYSCALL_DEFINE3(fchown, 93, int, fd, u32, uid, u32, gid)
{
	return ON_FD(fd, set_owner(f->inode, uid, gid));
}
SYSCALL_DEFINE5(fchownat, 260, int, dirfd, const char *, path, u32, uid, u32, gid, u32, flags)
{
	return ON_PATH(dirfd, path, FOLLOW(flags), set_owner(d->inode, uid, gid));
}

/* access(2) asks for the real user, not for the effective one. */
static s64 do_access(int dirfd, const char *path, u32 want, u32 flags)
{
	struct cred *c = &current_task()->cred, saved = *c;
	s64 ret;

	if (want & ~7U || flags & ~(u32)(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH))
		return -EINVAL;
	if (!(flags & AT_EACCESS)) {
		c->fsuid = c->uid;
		c->fsgid = c->gid;
	}
	ret = ON_PATH(dirfd, path, FOLLOW(flags), want ? inode_permission(d->inode, want) : 0);
	*c = saved;
	return ret;
}
SYSCALL_DEFINE2(access, 21, const char *, path, u32, want)
{
	return do_access(AT_FDCWD, path, want, 0);
}
SYSCALL_DEFINE3(faccessat, 269, int, dirfd, const char *, path, u32, want)
{
	return do_access(dirfd, path, want, 0);
}
SYSCALL_DEFINE4(faccessat2, 439, int, dirfd, const char *, path, u32, want, u32, flags)
{
	return do_access(dirfd, path, want, flags);
}

SYSCALL_DEFINE2(truncate, 76, const char *, path, s64, size)
{
	if (size < 0)
		return -EINVAL;
	return ON_PATH(AT_FDCWD, path, LOOKUP_FOLLOW,
		       inode_permission(d->inode, 2) ? : vfs_truncate(d->inode, (u64)size));
}
SYSCALL_DEFINE2(ftruncate, 77, int, fd, s64, size)
{
	if (size < 0)
		return -EINVAL;
	return ON_FD(fd, f->mode & FMODE_WRITE && !S_ISDIR(f->inode->mode) ? vfs_truncate(f->inode, (u64)size) : -EINVAL);
}

int vfs_fallocate(struct file *f, int mode, loff_t off, loff_t len)
{
	if (off < 0 || len <= 0)
		return -EINVAL;
	switch (mode & ~FALLOC_FL_KEEP_SIZE) {		/* what makes sense at all; the file says what it can */
	case FALLOC_FL_PUNCH_HOLE:
		if (!(mode & FALLOC_FL_KEEP_SIZE))
			return -EOPNOTSUPP;
		break;
	case FALLOC_FL_COLLAPSE_RANGE:
	case FALLOC_FL_INSERT_RANGE:
	case FALLOC_FL_WRITE_ZEROES:
		if (mode & FALLOC_FL_KEEP_SIZE)
			return -EOPNOTSUPP;
		break;
	case 0:
	case FALLOC_FL_ZERO_RANGE:
	case FALLOC_FL_UNSHARE_RANGE:
		break;
	default:
		return -EOPNOTSUPP;
	}
	return !(f->mode & FMODE_WRITE) ? -EBADF : S_ISDIR(f->inode->mode) ? -EISDIR :
	       S_ISFIFO(f->inode->mode) ? -ESPIPE : !S_ISREG(f->inode->mode) ? -ENODEV :
	       off + (u64)len > SHMEM_SIZE_MAX ? -EFBIG :
	       f->ops->fallocate ? f->ops->fallocate(f, mode, off, len) : -EOPNOTSUPP;
}

SYSCALL_DEFINE4(fallocate, 285, int, fd, int, mode, loff_t, off, loff_t, len)
{
	return ON_FD(fd, vfs_fallocate(f, mode, off, len));
}

#define UTIME_NOW	((1L << 30) - 1)
#define UTIME_OMIT	((1L << 30) - 2)

static int set_times(struct inode *inode, const struct timespec ts[2])
{
	u64 now = ktime_get_real_ns();

	for (int i = 0; i < 2; i++) {
		u64 *to = i ? &inode->mtime : &inode->atime;

		if (!ts || ts[i].nsec == UTIME_NOW)
			*to = now;
		else if (ts[i].nsec != UTIME_OMIT)
			*to = (u64)ts[i].sec * NSEC_PER_SEC + (u64)ts[i].nsec;
	}
	inode->ctime = now;
	return 0;
}

SYSCALL_DEFINE4(utimensat, 280, int, dirfd, const char *, path, const struct timespec *, user, u32, flags)
{
	struct timespec ts[2];

	if (user && copy_from_user(ts, user, sizeof(ts)))
		return -EFAULT;
	for (int i = 0; user && i < 2; i++)
		if (ts[i].nsec != UTIME_NOW && ts[i].nsec != UTIME_OMIT && (u64)ts[i].nsec >= NSEC_PER_SEC)
			return -EINVAL;
	if (!path)
		return ON_FD(dirfd, owns(f->inode) ? set_times(f->inode, user ? ts : NULL) : -EPERM);
	return ON_PATH(dirfd, path, FOLLOW(flags),
		       owns(d->inode) || (!user && !inode_permission(d->inode, 2))
		       ? set_times(d->inode, user ? ts : NULL) : -EPERM);
}
