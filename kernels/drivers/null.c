/* Devices that need no hardware: null, zero, full, random, urandom, kmsg. Numbers and behaviour: null(4), full(4),
 * random(4). Random numbers are the same in every run (lib/random.c).
 */
#include "init.h"
#include "pagecache.h"
#include "poll.h"
#include "printk.h"
#include "random.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"
#include "vfs.h"
#include "vma.h"

#define MEM_MAJOR	1
#define PIECE		256U
#define KMSG_LINE_MAX	992U		/* as Linux takes them */

#define RNDGETENTCNT	0x80045200

static ssize_t null_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	(void)f;
	(void)user;
	(void)size;
	(void)pos;
	return 0;
}

static ssize_t null_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	(void)f;
	(void)user;
	(void)pos;
	return (ssize_t)size;
}

static loff_t null_llseek(struct file *f, loff_t off, int whence)
{
	(void)off;
	(void)whence;
	return f->pos = 0;
}

static ssize_t zero_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	u64 left = size;

	(void)f;
	(void)pos;
	while (left && !fatal_signal_pending()) {
		u64 n = min(left, 1UL << 20), missed = clear_user((u8 *)user + (size - left), n);

		left -= n - missed;
		if (missed)
			return left == size ? -EFAULT : (ssize_t)(size - left);
	}
	return (ssize_t)(size - left);
}

/* Private, or nothing that could be written: memory without a file. Shared: a file of its own, whose pages those who
 * inherit the area see too. */
static int zero_mmap(struct file *f, struct vma *v)
{
	struct file *own;

	if (!(f->mode & FMODE_WRITE))
		v->flags &= ~VM_SHARED;
	if (!(v->flags & VM_SHARED))
		return 0;
	own = shmem_file_setup("dev/zero", v->end - v->start, F_SEAL_SEAL, 0600, O_RDWR);
	if (IS_ERR(own))
		return (int)PTR_ERR(own);
	fput(v->file);
	v->file = own;
	return own->ops->mmap(own, v);
}

static ssize_t full_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	(void)f;
	(void)user;
	(void)size;
	(void)pos;
	return -ENOSPC;
}

static ssize_t random_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	u64 done = 0;

	(void)f;
	(void)pos;
	while (done < size && !(done && signal_pending())) {
		u8 piece[PIECE];
		u64 n = min(size - done, (u64)PIECE), left;

		get_random_bytes(piece, n);
		left = copy_to_user((u8 *)user + done, piece, n);
		done += n - left;
		if (left)
			return done ? (ssize_t)done : -EFAULT;
	}
	return (ssize_t)done;
}

/* What programs mix in changes nothing. */
static ssize_t random_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	u64 done = 0;

	(void)f;
	(void)pos;
	while (done < size && !(done && signal_pending())) {
		u8 piece[PIECE];
		u64 n = min(size - done, (u64)PIECE), left = copy_from_user(piece, (const u8 *)user + done, n);

		done += n - left;
		if (left)
			return done ? (ssize_t)done : -EFAULT;
	}
	return (ssize_t)done;
}

static u32 random_poll(struct file *f, struct poll_table *t)
{
	(void)f;
	(void)t;
	return EPOLLIN;
}

static s64 random_ioctl(struct file *f, u32 cmd, u64 arg)
{
	(void)f;
	return cmd == RNDGETENTCNT ? put_user(256, (int *)arg) : -EINVAL;
}

/* "<N>text": N is the level; others than kernel messages' have facilities above it. */
static ssize_t kmsg_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	char fmt[] = KERN_EMERG "%s\n";
	u64 level = 4;
	char *text, *end, *p;

	(void)f;
	(void)pos;
	if (size > KMSG_LINE_MAX)
		return -EINVAL;
	text = kzalloc(size + 1, GFP_KERNEL);
	if (!text)
		return -ENOMEM;
	if (copy_from_user(text, user, size)) {
		kfree(text);
		return -EFAULT;
	}
	p = text;
	if (*p == '<') {
		for (end = p + 1, level = 0; *end >= '0' && *end <= '9' && level < 1 << 20; end++)
			level = level * 10 + (u64)(*end - '0');
		if (*end == '>' && end > p + 1)
			p = end + 1;
		else
			level = 4;
	}
	end = text + size;
	if (end > p && end[-1] == '\n')
		*--end = 0;
	fmt[1] = (char)('0' + level % 8);
	printk(fmt, p);
	kfree(text);
	return (ssize_t)size;
}

static const struct file_ops null_ops = { .read = null_read, .write = null_write, .llseek = null_llseek };
static const struct file_ops zero_ops = {
	.read = zero_read, .write = null_write, .llseek = null_llseek, .mmap = zero_mmap,
};
static const struct file_ops full_ops = { .read = zero_read, .write = full_write, .llseek = null_llseek };
static const struct file_ops random_ops = {
	.read = random_read, .write = random_write, .ioctl = random_ioctl, .llseek = null_llseek, .poll = random_poll,
};
static const struct file_ops urandom_ops = {
	.read = random_read, .write = random_write, .ioctl = random_ioctl, .llseek = null_llseek,
};
static const struct file_ops kmsg_ops = { .write = kmsg_write };

static struct chrdev devices[] = {
	{ .name = "null", .minor = 3, .mode = 0666, .fops = &null_ops },
	{ .name = "zero", .minor = 5, .mode = 0666, .fops = &zero_ops },
	{ .name = "full", .minor = 7, .mode = 0666, .fops = &full_ops },
	{ .name = "random", .minor = 8, .mode = 0666, .fops = &random_ops },
	{ .name = "urandom", .minor = 9, .mode = 0666, .fops = &urandom_ops },
	{ .name = "kmsg", .minor = 11, .mode = 0644, .fops = &kmsg_ops },
};

static int null_init(void)
{
	for (unsigned int i = 0; i < ARRAY_SIZE(devices); i++) {
		int err;

		devices[i].major = MEM_MAJOR;
		err = register_chrdev(&devices[i]);
		if (err)
			return err;
	}
	return 0;
}
device_initcall(null_init);
