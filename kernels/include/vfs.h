/* Files and directories (fs/). Everything is in memory: the names of tmpfs, devtmpfs, sysfs and debugfs are pinned
 * dentries, /proc makes the names of processes when they are looked up.
 *
 *	struct file	an open file: position, flags, operations
 *	struct dentry	a name in a directory; mounted file systems hang here
 *	struct inode	the file itself
 */
#pragma once
#include "types.h"
#include "errno.h"
#include "list.h"
#include "pagecache.h"
#include "release.h"
#include "sched.h"

#define NAME_MAX	255
#define PATH_MAX	4096

#define S_IFMT	0170000
#define S_IFSOCK 0140000
#define S_IFLNK	0120000
#define S_IFREG	0100000
#define S_IFBLK	0060000
#define S_IFDIR	0040000
#define S_IFCHR	0020000
#define S_IFIFO	0010000
#define S_ISVTX	0001000
#define S_ISDIR(m)	(((m) & S_IFMT) == S_IFDIR)
#define S_ISREG(m)	(((m) & S_IFMT) == S_IFREG)
#define S_ISLNK(m)	(((m) & S_IFMT) == S_IFLNK)
#define S_ISCHR(m)	(((m) & S_IFMT) == S_IFCHR)
#define S_ISFIFO(m)	(((m) & S_IFMT) == S_IFIFO)
#define S_ISSOCK(m)	(((m) & S_IFMT) == S_IFSOCK)

#define O_ACCMODE	00000003
#define O_RDONLY	00000000
#define O_WRONLY	00000001
#define O_RDWR		00000002
#define O_CREAT		00000100
#define O_EXCL		00000200
#define O_NOCTTY	00000400
#define O_TRUNC		00001000
#define O_APPEND	00002000
#define O_NONBLOCK	00004000
#define O_LARGEFILE	00100000
#define O_DIRECTORY	00200000
#define O_NOFOLLOW	00400000
#define O_CLOEXEC	02000000
#define O_PATH		010000000
#define O_TMPFILE	020200000

#define SEEK_DATA	3
#define SEEK_HOLE	4
#define FALLOC_FL_KEEP_SIZE	0x01
#define FALLOC_FL_PUNCH_HOLE	0x02
#define FALLOC_FL_COLLAPSE_RANGE 0x08
#define FALLOC_FL_ZERO_RANGE	0x10
#define FALLOC_FL_INSERT_RANGE	0x20
#define FALLOC_FL_UNSHARE_RANGE	0x40
#define FALLOC_FL_WRITE_ZEROES	0x80

struct inode;
struct dentry;
struct file;
struct vma;
struct wait_queue;
struct poll_table;
struct seq;

#define RW_MAX		0x7ffff000UL		/* one call moves no more */
struct iovec {					/* of a program */
	void *base;
	u64 len;
};
/* What is left of a program's buffers (fs/buffers.c). */
struct buffers {
	const struct iovec *vec;
	u64 count, offset;			/* in the first one */
	u64 left;
};
int buffers_init(struct buffers *b, const struct iovec *vec, u64 count);	/* vec in the kernel's memory; -EINVAL, -EFAULT */
int buffers_read(struct buffers *b, void *to, u64 size);	/* from the program; 0, -EFAULT: it did not move on */
int buffers_write(struct buffers *b, const void *from, u64 size);

typedef int (*filldir_t)(void *ctx, const char *name, u32 len, u64 ino, u32 type);	/* non-zero stops */

struct file_ops {
	ssize_t (*read)(struct file *f, void *user, u64 size, loff_t *pos);	/* user addresses */
	ssize_t (*write)(struct file *f, const void *user, u64 size, loff_t *pos);
	/* The whole vector, which is in the kernel's memory, at once: files whose calls have borders. NULL: piece by piece. */
	ssize_t (*vector)(struct file *f, const struct iovec *vec, u64 count, bool write);
	loff_t (*llseek)(struct file *f, loff_t off, int whence);	/* NULL: -ESPIPE; see generic_llseek */
	int (*iterate)(struct file *f, void *ctx, filldir_t fill, loff_t *pos);
	u32 (*poll)(struct file *f, struct poll_table *t);		/* EPOLL* bits; NULL: always readable, writable */
	s64 (*ioctl)(struct file *f, u32 cmd, u64 arg);			/* NULL: -ENOTTY */
	int (*mmap)(struct file *f, struct vma *vma);			/* sets vma->mapping; NULL: -ENODEV */
	/* VM_DEVICE: where that page of the file is. mapping->lock is held. -EIO: SIGBUS. */
	int (*device_page)(struct file *f, u64 page, phys_addr_t *phys);
	int (*open)(struct inode *inode, struct file *f);
	void (*release)(struct file *f);				/* the last reference is gone */
	int (*fallocate)(struct file *f, int mode, loff_t off, loff_t len);
	const void *(*contents)(struct file *f);	/* inode->size bytes of the kernel's memory, for kernel_read() */
	/* What readlink("/proc/self/fd/N") says, NULL: the path. */
	void (*show_name)(struct file *f, char *buf, u64 size);
};

struct inode_ops {
	/* Names that are not pinned: a new dentry below dir, ERR_PTR(-ENOENT). NULL: only pinned names exist. */
	struct dentry *(*lookup)(struct dentry *dir, const char *name, u32 len);
	int (*create)(struct dentry *dir, struct dentry *new, u32 mode, u64 rdev);	/* regular, device, fifo, socket */
	int (*mkdir)(struct dentry *dir, struct dentry *new, u32 mode);
	int (*symlink)(struct dentry *dir, struct dentry *new, const char *target);
	bool writable;				/* names can be made, renamed and removed here */
	int (*setsize)(struct inode *inode, u64 size);			/* truncate; NULL: -EINVAL */
	/* Contents of a symbolic link that is not text (/proc/self/exe): its target, referenced, ERR_PTR. */
	struct dentry *(*follow)(struct inode *inode);
	ssize_t (*readlink)(struct inode *inode, char *buf, u64 size);
	void (*evict)(struct inode *inode);	/* the last reference is gone: inode->private */
};

struct super {					/* a mounted file system */
	const char *type;
	u64 magic;				/* as statfs(2) reports it */
	u32 dev;
	struct dentry *root;
	u64 next_ino;
};

struct inode {
	u32 refs;
	struct super *super;
	u64 ino;
	u32 mode, uid, gid, nlink;
	u64 size, rdev;
	bool linkable;				/* O_TMPFILE: may get a name although it has none */
	u64 atime, mtime, ctime;		/* ns since the epoch */
	struct mutex lock;			/* size, contents, names in it */
	const struct inode_ops *ops;
	const struct file_ops *fops;
	struct shmem *shmem;			/* contents in memory, NULL for others */
	char *target;				/* symbolic link */
	void *private;
};

struct dentry {
	u32 refs;				/* users; a pinned name has one by its parent */
	char *name;
	struct dentry *parent;			/* itself at a root */
	struct inode *inode;
	struct list_head children, sibling;	/* pinned names; in the order in which they were made */
	u64 cookie, next_cookie;		/* position in readdir(), of this name and of the next one in it */
	bool unlinked;				/* the name is gone, the file may be open */
	struct dentry *mounted;			/* root of what is mounted here */
	struct dentry *covers;			/* of a root: where it is mounted */
	struct super *super;
};

/* Fields: u32 refs; u32 flags; u32 mode (what open allows); loff_t pos; struct mutex pos_lock; struct dentry *dentry;
 * struct inode *inode; const struct file_ops *ops; void *private. The release orders them and adds its own. */
#define FMODE_READ	1
#define FMODE_WRITE	2
#define FMODE_PATH	4			/* O_PATH */
struct file {
	RELEASE_OPEN_FILE_FIELDS
	struct list_head watchers;		/* who watches it by epoll(7) */
};

/* ---- open files and descriptors (fs/file.c) ---- */
struct file *fget(int fd);			/* a reference; NULL if not open or O_PATH */
struct file *fget_raw(int fd);			/* O_PATH too */
void file_get(struct file *f);
void fput(struct file *f);
int get_unused_fd(u32 flags);			/* reserves; -EMFILE. flags: O_CLOEXEC */
void put_unused_fd(int fd);
void fd_install(int fd, struct file *f);	/* takes over the reference */
int close_fd(int fd);
int get_unused_fd_from(u32 start, u32 flags);	/* the lowest that is not below start */
int dup_from(int old, u32 start, u32 flags);
bool file_show_name(struct file *f, char *buf, u64 size);	/* what /proc says of it if that is no path */
/* A file without a name in any directory; ERR_PTR. /proc shows anon_inode:NAME. */
bool is_anon_inode(const struct inode *inode);
struct file *anon_inode_getfile(const char *name, const struct file_ops *ops, void *private, u32 flags);
/* The same with a descriptor for it, the result. flags: O_CLOEXEC, O_NONBLOCK. On failure *private is the caller's. */
s64 anon_inode_getfd(const char *name, const struct file_ops *ops, void *private, u32 flags);
void epoll_forget(struct file *f);		/* fs/epoll.c: it is closed */
/* The same for an inode, whose reference it takes over; /proc shows "/NAME (deleted)". ERR_PTR (then the inode is put). */
struct file *alloc_file_pseudo(struct inode *inode, const char *name, u32 flags, const struct file_ops *ops);
struct file *file_open(const char *path, u32 flags, u32 mode);	/* by the kernel; ERR_PTR */
struct file *dentry_open(struct dentry *d, u32 flags);		/* ERR_PTR */
bool has_position(const struct file *f);		/* that reading and writing moves */
bool takes_position(const struct file *f);	/* that pread(2) and its like may be used with */
ssize_t kernel_read(struct file *f, void *buf, u64 size, loff_t *pos);	/* kernel address; files in memory only */
ssize_t kernel_write(struct file *f, const void *buf, u64 size, loff_t *pos);
bool beyond(loff_t pos, u64 size);	/* a byte that would be moved is behind the last one that a position can name */
loff_t generic_llseek(struct file *f, loff_t off, int whence);
loff_t noop_llseek(struct file *f, loff_t off, int whence);	/* of files that have no position and do not mind */
/* The whole file in vmalloc()ed memory; size or -errno. */
ssize_t kernel_read_file(struct file *f, void **buf, u64 max);

/* ---- tables of open files, roots of paths (fs/file.c), for fork, exec and exit; struct files, fs: task.h ---- */
struct files;
struct fs;
struct files *files_new(void);			/* empty; one reference; NULL */
struct files *files_copy(struct files *old);	/* of fork: the same open files; NULL */
void files_get(struct files *files);
void files_put(struct files *files);		/* the last reference closes all */
void files_close_on_exec(struct files *files);
struct fs *fs_new(void);			/* at the root, umask 022; NULL */
struct fs *fs_copy(struct fs *old);		/* NULL */
void fs_get(struct fs *fs);
void fs_put(struct fs *fs);

/* ---- names (fs/namei.c) ---- */
#define LOOKUP_FOLLOW		1
#define LOOKUP_DIRECTORY	2
#define LOOKUP_PARENT		4		/* the directory; the last component is left in *last */
#define AT_FDCWD		(-100)
#define AT_SYMLINK_NOFOLLOW	0x100
#define AT_REMOVEDIR		0x200
#define AT_EMPTY_PATH		0x1000
int path_lookup(int dirfd, const char *path, u32 flags, struct dentry **out, char last[NAME_MAX + 1]);
void dget(struct dentry *d);
void dput(struct dentry *d);
char *getname(const char *user);		/* a program's path, kmalloc()ed; ERR_PTR */
int user_path(int dirfd, const char *upath, u32 flags, struct dentry **out);
/* As the system calls do, by the kernel too (initramfs): umask applied; 0 or -errno. */
u32 umasked(u32 mode);
int vfs_mkdir(int dirfd, const char *path, u32 mode);
int vfs_symlink(const char *target, int dirfd, const char *path);
int vfs_mknod(int dirfd, const char *path, u32 mode, u64 rdev);	/* mode with its type */
int vfs_link(struct dentry *old, int dirfd, const char *path);
int vfs_fallocate(struct file *f, int mode, loff_t off, loff_t len);	/* fallocate(2) */
int vfs_truncate(struct inode *inode, u64 size);		/* 0, -EISDIR, -EINVAL, and what setsize says */
ssize_t dentry_path(struct dentry *d, char *buf, u64 size);	/* absolute path; length or -ENAMETOOLONG */
/* For in-kernel file systems: a name below dir with a new inode; ERR_PTR(-EEXIST, -ENOMEM). */
struct dentry *vfs_make(struct dentry *dir, const char *name, u32 mode, const struct file_ops *fops, void *private);
void vfs_remove(struct dentry *d);		/* with everything below */

/* What the tree of names consists of; namespace_lock (a mutex) protects parents, children, mounts and names. */
extern struct mutex namespace_lock;
struct dentry *d_alloc(struct dentry *parent, const char *name, u32 len);	/* not in the tree yet; NULL */
void d_add(struct dentry *parent, struct dentry *d);	/* pins it there; lock held */
void d_drop(struct dentry *d);				/* the name goes; lock held */
struct dentry *d_find(struct dentry *parent, const char *name, u32 len);	/* pinned, no reference; lock held */
struct dentry *d_make_root(struct super *s, struct inode *inode);
/* Lists a directory of pinned names; file_ops of directories. */
extern const struct file_ops dir_file_ops;
int dir_iterate(struct file *f, void *ctx, filldir_t fill, loff_t *pos);
int inode_permission(const struct inode *inode, u32 want);	/* 4 read, 2 write, 1 execute; -EACCES */

/* ---- file systems ---- */
struct super *super_create(const char *type, u64 magic);
struct inode *inode_new(struct super *s, u32 mode);
void iget(struct inode *inode);
void iput(struct inode *inode);
struct super *tmpfs_mount(void);		/* a new one */
extern struct super *rootfs, *devtmpfs, *procfs, *sysfs, *debugfs, *devptsfs;
void vfs_init(void);				/* rootfs; the others register as initcalls */

/* A character device: its node appears in /dev and its line in /proc/misc or /proc/devices. */
struct chrdev {
	const char *name;
	u32 major, minor;			/* major 10: misc; minor 255: any free one */
	u32 mode;
	const struct file_ops *fops;
	struct list_head list;
};
int register_chrdev(struct chrdev *dev);
void show_devices(struct seq *s, u32 major);		/* lines of /proc/misc */
bool dir_iterate_dots(struct file *f, void *ctx, filldir_t fill, loff_t *pos);	/* "." and ".."; false: buffer full */
const struct file_ops *chrdev_fops(u64 rdev);		/* NULL: no such device */
#define MKDEV(major, minor)	((u64)(major) << 8 | (minor))	/* both below 256 here */
extern const struct file_ops fifo_file_ops;		/* fs/pipe.c */

/* Text files of /proc, sysfs and debugfs: show() writes into a buffer that grows. */
struct seq {
	char *buf;
	u64 size, len;
};
void seq_printf(struct seq *s, const char *fmt, ...) __printf(2, 3);
void seq_write(struct seq *s, const void *data, u64 len);
/* Makes an inode such a file; its evict frees what this allocates. seq_private() is what show() gets. */
int seq_init_inode(struct inode *inode, int (*show)(struct seq *s, void *private), void *private);
void *seq_private(const struct inode *inode);
struct dentry *seq_file_create(struct dentry *dir, const char *name, u32 mode, int (*show)(struct seq *s, void *private),
			       void *private);
