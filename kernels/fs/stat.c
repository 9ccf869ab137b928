/* stat(2) and statfs(2): what Linux on x86-64 gives. */
#include "vfs.h"
#include "ktimer.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

struct stat {
	u64 dev, ino, nlink;
	u32 mode, uid, gid, pad0;
	u64 rdev;
	s64 size, blksize, blocks;
	struct timespec atime, mtime, ctime;
	s64 unused[3];
};
static_assert(sizeof(struct stat) == 144, "struct stat of x86-64");

struct statx_timestamp {
	s64 sec;
	u32 nsec, pad;
};
struct statx {
	u32 mask, blksize;
	u64 attributes;
	u32 nlink, uid, gid;
	u16 mode, pad0;
	u64 ino, size, blocks, attributes_mask;
	struct statx_timestamp atime, btime, ctime, mtime;
	u32 rdev_major, rdev_minor, dev_major, dev_minor;
	u64 spare[14];
};
static_assert(sizeof(struct statx) == 256, "struct statx");
#define STATX_BASIC_STATS 0x7ff

struct statfs {
	s64 type, bsize;
	u64 blocks, bfree, bavail, files, ffree;
	s32 fsid[2];
	s64 namelen, frsize, flags, spare[4];
};
static_assert(sizeof(struct statfs) == 120, "struct statfs of x86-64");

static struct timespec ts(u64 ns) { return (struct timespec){ .sec = (s64)(ns / NSEC_PER_SEC), .nsec = (s64)(ns % NSEC_PER_SEC) }; }

static u64 blocks_of(const struct inode *inode)
{
	return inode->shmem ? inode->shmem->mapping.nr_pages * (PAGE_SIZE / 512) : 0;
}

static int put_stat(struct inode *inode, struct stat *user)
{
	struct stat st = {
		.dev = inode->super->dev, .ino = inode->ino, .nlink = inode->nlink, .mode = inode->mode,
		.uid = inode->uid, .gid = inode->gid, .rdev = inode->rdev, .size = (s64)inode->size,
		.blksize = PAGE_SIZE, .blocks = (s64)blocks_of(inode),
		.atime = ts(inode->atime), .mtime = ts(inode->mtime), .ctime = ts(inode->ctime),
	};

	return copy_to_user(user, &st, sizeof(st)) ? -EFAULT : 0;
}

static s64 stat_path(int dirfd, const char *path, struct stat *user, u32 flags)
{
	struct dentry *d;
	int err = user_path(dirfd, path, flags, &d);

	if (err)
		return err;
	err = put_stat(d->inode, user);
	dput(d);
	return err;
}

SYSCALL_DEFINE2(stat, 4, const char *, path, struct stat *, user)
{
	return stat_path(AT_FDCWD, path, user, LOOKUP_FOLLOW);
}
SYSCALL_DEFINE2(lstat, 6, const char *, path, struct stat *, user)
{
	return stat_path(AT_FDCWD, path, user, 0);
}
SYSCALL_DEFINE2(fstat, 5, int, fd, struct stat *, user)
{
	struct file *f = fget_raw(fd);
	int err;

	if (!f)
		return -EBADF;
	err = put_stat(f->inode, user);
	fput(f);
	return err;
}
SYSCALL_DEFINE4(newfstatat, 262, int, dirfd, const char *, path, struct stat *, user, u32, flags)
{
	if (flags & ~(u32)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | 0x800))
		return -EINVAL;
	return stat_path(dirfd, path, user, (flags & AT_SYMLINK_NOFOLLOW ? 0 : LOOKUP_FOLLOW) | (flags & AT_EMPTY_PATH));
}

static struct statx_timestamp xts(u64 ns)
{
	return (struct statx_timestamp){ .sec = (s64)(ns / NSEC_PER_SEC), .nsec = (u32)(ns % NSEC_PER_SEC) };
}

SYSCALL_DEFINE5(statx, 332, int, dirfd, const char *, path, u32, flags, u32, mask, struct statx *, user)
{
	struct statx st = { 0 };
	struct inode *inode;
	struct dentry *d;
	int err;

	if (mask & 0x80000000U || flags & ~(u32)(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH | 0x800 | 0x6000))
		return -EINVAL;
	err = user_path(dirfd, path, (flags & AT_SYMLINK_NOFOLLOW ? 0 : LOOKUP_FOLLOW) | (flags & AT_EMPTY_PATH), &d);
	if (err)
		return err;
	inode = d->inode;
	st.mask = STATX_BASIC_STATS;
	st.blksize = PAGE_SIZE;
	st.nlink = inode->nlink;
	st.uid = inode->uid;
	st.gid = inode->gid;
	st.mode = (u16)inode->mode;
	st.ino = inode->ino;
	st.size = inode->size;
	st.blocks = blocks_of(inode);
	st.atime = xts(inode->atime);
	st.mtime = xts(inode->mtime);
	st.ctime = xts(inode->ctime);
	st.rdev_major = (u32)(inode->rdev >> 8);
	st.rdev_minor = inode->rdev & 255;
	st.dev_minor = inode->super->dev;
	dput(d);
	return copy_to_user(user, &st, sizeof(st)) ? -EFAULT : 0;
}

static int put_statfs(const struct super *s, struct statfs *user)
{
	u64 total = s->magic == 0x01021994 ? nr_managed_pages() / 2 : 0;
	struct statfs st = {
		.type = (s64)s->magic, .bsize = PAGE_SIZE, .frsize = PAGE_SIZE, .namelen = NAME_MAX,
		.blocks = total, .bfree = min(total, nr_free_pages()),
		.bavail = min(total, nr_free_pages()), .fsid = { (s32)s->dev, 0 }, .flags = 0x1020,
	};

	return copy_to_user(user, &st, sizeof(st)) ? -EFAULT : 0;
}

SYSCALL_DEFINE2(statfs, 137, const char *, path, struct statfs *, user)
{
	struct dentry *d;
	int err = user_path(AT_FDCWD, path, LOOKUP_FOLLOW, &d);

	if (err)
		return err;
	err = put_statfs(d->super, user);
	dput(d);
	return err;
}
SYSCALL_DEFINE2(fstatfs, 138, int, fd, struct statfs *, user)
{
	struct file *f = fget_raw(fd);
	int err;

	if (!f)
		return -EBADF;
	err = put_statfs(f->inode->super, user);
	fput(f);
	return err;
}

static s64 do_readlink(int dirfd, const char *upath, char *user, s32 size)
{
	struct dentry *d;
	char *buf;
	ssize_t len;
	int err;

	if (size <= 0)
		return -EINVAL;
	err = user_path(dirfd, upath, AT_EMPTY_PATH, &d);
	if (err)
		return err;
	buf = kmalloc(PATH_MAX, GFP_KERNEL);
	if (!buf) {
		len = -ENOMEM;
	} else if (!S_ISLNK(d->inode->mode)) {
		len = -EINVAL;
	} else if (d->inode->target) {
		len = strscpy(buf, d->inode->target, PATH_MAX);
	} else {
		len = d->inode->ops && d->inode->ops->readlink ? d->inode->ops->readlink(d->inode, buf, PATH_MAX) : -EINVAL;
	}
	if (len > size)
		len = size;
	if (len > 0 && copy_to_user(user, buf, (u64)len))
		len = -EFAULT;
	kfree(buf);
	dput(d);
	return len;
}
SYSCALL_DEFINE3(readlink, 89, const char *, path, char *, user, s32, size)
{
	return do_readlink(AT_FDCWD, path, user, size);
}
SYSCALL_DEFINE4(readlinkat, 267, int, dirfd, const char *, path, char *, user, s32, size)
{
	return do_readlink(dirfd, path, user, size);
}
