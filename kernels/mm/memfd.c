/* memfd_create(2), seals, and files of the internal tmpfs that have no name. */
#include "pagecache.h"
#include "printk.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define MFD_CLOEXEC		0x0001U
#define MFD_ALLOW_SEALING	0x0002U
#define MFD_HUGETLB		0x0004U
#define MFD_NOEXEC_SEAL		0x0008U
#define MFD_EXEC		0x0010U
#define MFD_HUGE_SHIFT		26
#define MFD_ALL			(MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_NOEXEC_SEAL | MFD_EXEC)

#define NAME_PREFIX		"memfd:"
#define NAME_LEN_MAX		(NAME_MAX - (sizeof(NAME_PREFIX) - 1))	/* without the terminator */

#define F_SEALS_ALL	(F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_EXEC)

#define TMPFS_MAGIC	0x01021994
#define HUGETLBFS_MAGIC	0x958458f6

static struct super *shm_super, *hugetlb_super;

static int shmem_setsize(struct inode *inode, u64 size)
{
	return shmem_truncate(inode, size);
}
static const struct inode_ops memfd_inode_ops = { .setsize = shmem_setsize };

static struct super *internal_super(struct super **s, const char *type, u64 magic)
{
	if (!*s)
		*s = super_create(type, magic);
	return *s;
}

struct file *shmem_file_setup(const char *name, u64 size, u32 seals, u32 mode, u32 flags)
{
	struct super *s = internal_super(&shm_super, "tmpfs", TMPFS_MAGIC);
	struct inode *inode = s ? inode_new(s, S_IFREG | mode) : NULL;

	if (!inode)
		return ERR_PTR(-ENOMEM);
	inode->nlink = 0;
	inode->ops = &memfd_inode_ops;
	if (shmem_init_inode(inode)) {
		iput(inode);
		return ERR_PTR(-ENOMEM);
	}
	inode->size = size;
	inode->shmem->seals = seals;
	return alloc_file_pseudo(inode, name, flags, &shmem_file_ops);
}

static const struct inode_ops hugetlb_inode_ops;

/* NULL: the file can have none. */
static u32 *seals_of(struct inode *inode)
{
	return shmem_inode(inode) ? &inode->shmem->seals : inode->ops == &hugetlb_inode_ops ? (u32 *)&inode->private : NULL;
}

/* A hugetlb file on a machine whose pool of huge pages is empty: it can have a size, but never a page. */
static int hugetlb_setsize(struct inode *inode, u64 size)
{
	if (size % PMD_SIZE)
		return -EINVAL;
	if (size != inode->size && *seals_of(inode) & (size < inode->size ? F_SEAL_SHRINK : F_SEAL_GROW))
		return -EPERM;
	inode->size = size;
	return 0;
}
static ssize_t hugetlb_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	u64 n = (u64)*pos < f->inode->size ? min(size, f->inode->size - (u64)*pos) : 0;

	if (clear_user(user, n))
		return -EFAULT;
	*pos += (loff_t)n;
	return (ssize_t)n;
}
static int hugetlb_mmap(struct file *f, struct vma *vma)
{
	if (vma->flags & VM_SHARED && vma->flags & VM_WRITE && *seals_of(f->inode) & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return -EPERM;
	return IS_ALIGNED(PFN_PHYS(vma->pgoff), PMD_SIZE) ? -ENOMEM : -EINVAL;
}
static int hugetlb_fallocate(struct file *f, int mode, loff_t off, loff_t len)
{
	u64 end = (u64)off + (u64)len;

	if (mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE))
		return -EOPNOTSUPP;
	if (mode & FALLOC_FL_PUNCH_HOLE)
		return *seals_of(f->inode) & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) ? -EPERM : 0;
	return end > f->inode->size && *seals_of(f->inode) & F_SEAL_GROW ? -EPERM : -ENOSPC;
}
static const struct inode_ops hugetlb_inode_ops = { .setsize = hugetlb_setsize };
static const struct file_ops hugetlb_file_ops = {
	.read = hugetlb_read, .llseek = generic_llseek, .mmap = hugetlb_mmap, .fallocate = hugetlb_fallocate,
};

static struct file *hugetlb_file_setup(const char *name, u32 seals, u32 mode)
{
	struct super *s = internal_super(&hugetlb_super, "hugetlbfs", HUGETLBFS_MAGIC);
	struct inode *inode = s ? inode_new(s, S_IFREG | mode) : NULL;

	if (!inode)
		return ERR_PTR(-ENOMEM);
	inode->nlink = 0;
	inode->ops = &hugetlb_inode_ops;
	inode->fops = &hugetlb_file_ops;
	*seals_of(inode) = seals;
	return alloc_file_pseudo(inode, name, O_RDWR | O_LARGEFILE, &hugetlb_file_ops);
}

SYSCALL_DEFINE2(memfd_create, 319, const char *, uname, u32, flags)
{
	char name[NAME_MAX + 1] = NAME_PREFIX;
	u32 mode = 0777, seals = F_SEAL_SEAL;
	struct file *file;
	ssize_t len;
	int fd;

	if (flags & MFD_HUGETLB ? flags & ~MFD_ALL & ((1U << MFD_HUGE_SHIFT) - 1) : flags & ~MFD_ALL)
		return -EINVAL;
	if ((flags & MFD_EXEC) && (flags & MFD_NOEXEC_SEAL))
		return -EINVAL;
	len = strncpy_from_user(name + sizeof(NAME_PREFIX) - 1, uname, NAME_LEN_MAX + 1);
	if (len < 0)
		return len;
	if ((u64)len > NAME_LEN_MAX)
		return -EINVAL;
	fd = get_unused_fd(flags & MFD_CLOEXEC ? O_CLOEXEC : 0);
	if (fd < 0)
		return fd;
	if (flags & MFD_NOEXEC_SEAL) {
		mode &= ~0111U;
		seals = F_SEAL_EXEC;
	} else if (flags & MFD_ALLOW_SEALING) {
		seals = 0;
	}
	file = flags & MFD_HUGETLB ? hugetlb_file_setup(name, seals, mode)
				   : shmem_file_setup(name, 0, seals, mode, O_RDWR | O_LARGEFILE);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		return PTR_ERR(file);
	}
	fd_install(fd, file);
	return fd;
}

s64 memfd_get_seals(struct file *file)
{
	const u32 *seals = seals_of(file->inode);

	return seals ? (s64)*seals : -EINVAL;
}

static int is_pinned(struct folio *f, void *ctx)
{
	(void)ctx;
	return !!(f->page.flags & PG_PINNED);
}

static bool has_pins(struct mapping *m)
{
	bool pinned;

	mutex_lock(&m->lock);
	pinned = mapping_walk(m, 0, ~0UL, is_pinned, NULL);
	mutex_unlock(&m->lock);
	return pinned;
}

int memfd_add_seals(struct file *file, u32 seals)
{
	struct inode *inode = file->inode;
	u32 *has = seals_of(inode);
	int err = 0;

	if (!(file->mode & FMODE_WRITE))
		return -EPERM;
	if (seals & ~(u32)F_SEALS_ALL || !has)
		return -EINVAL;
	mutex_lock(&inode->lock);
	if (*has & F_SEAL_SEAL) {
		err = -EPERM;
	} else {
		if (seals & F_SEAL_EXEC && inode->mode & 0111)
			seals |= F_SEALS_WRITE;
		if (seals & F_SEAL_WRITE && !(*has & F_SEAL_WRITE) && shmem_inode(inode) &&
		    (inode->shmem->mapping.writable || has_pins(&inode->shmem->mapping)))
			err = -EBUSY;
		else
			*has |= seals;
	}
	mutex_unlock(&inode->lock);
	return err;
}
