/* Files whose text is made when they are read: /proc, sysfs, debugfs. The text is made once an open file, at the first
 * read, and does not change while that file stays open and is read on; reading from the start makes it anew. */
#include "vfs.h"
#include "printk.h"
#include "string.h"
#include "uaccess.h"

struct seq_source {
	int (*show)(struct seq *s, void *private);
	void *private;
};

static bool make_room(struct seq *s, u64 more)
{
	u64 size = max(s->size * 2, 256UL);
	char *buf;

	if (s->len + more <= s->size)
		return true;
	while (size < s->len + more)
		size *= 2;
	buf = vmalloc(size);
	if (!buf)
		return false;
	if (s->buf)
		memcpy(buf, s->buf, s->len);
	vfree(s->buf);
	s->buf = buf;
	s->size = size;
	return true;
}

void seq_write(struct seq *s, const void *data, u64 len)
{
	if (!make_room(s, len))
		return;
	memcpy(s->buf + s->len, data, len);
	s->len += len;
}

void seq_printf(struct seq *s, const char *fmt, ...)
{
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(NULL, 0, fmt, args);
	va_end(args);
	if (n <= 0 || !make_room(s, (u64)n + 1))
		return;
	va_start(args, fmt);
	vsnprintf(s->buf + s->len, (u64)n + 1, fmt, args);
	va_end(args);
	s->len += (u64)n;
}

static ssize_t seq_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	struct seq_source *source = f->inode->private;
	struct seq *s = f->private;
	u64 n;

	if (!s || !*pos) {
		int err;

		if (!s) {
			s = kzalloc(sizeof(*s), GFP_KERNEL);
			if (!s)
				return -ENOMEM;
			f->private = s;
		}
		s->len = 0;
		err = source->show(s, source->private);
		if (err)
			return err;
	}
	if ((u64)*pos >= s->len)
		return 0;
	n = min(size, s->len - (u64)*pos);
	if (copy_to_user(user, s->buf + *pos, n))
		return -EFAULT;
	*pos += (loff_t)n;
	return (ssize_t)n;
}

static void seq_release(struct file *f)
{
	struct seq *s = f->private;

	if (s)
		vfree(s->buf);
	kfree(s);
}

static const struct file_ops seq_file_ops = { .read = seq_read, .llseek = generic_llseek, .release = seq_release };

static void seq_evict(struct inode *inode) { kfree(inode->private); }
static const struct inode_ops seq_inode_ops = { .evict = seq_evict };

int seq_init_inode(struct inode *inode, int (*show)(struct seq *s, void *private), void *private)
{
	struct seq_source *source = kmalloc(sizeof(*source), GFP_KERNEL);

	if (!source)
		return -ENOMEM;
	source->show = show;
	source->private = private;
	inode->private = source;
	inode->fops = &seq_file_ops;
	inode->ops = &seq_inode_ops;
	return 0;
}

void *seq_private(const struct inode *inode) { return ((struct seq_source *)inode->private)->private; }

struct dentry *seq_file_create(struct dentry *dir, const char *name, u32 mode, int (*show)(struct seq *s, void *private),
			       void *private)
{
	struct dentry *d = vfs_make(dir, name, S_IFREG | mode, &seq_file_ops, NULL);

	if (!IS_ERR(d) && seq_init_inode(d->inode, show, private)) {
		vfs_remove(d);
		return ERR_PTR(-ENOMEM);
	}
	return d;
}
