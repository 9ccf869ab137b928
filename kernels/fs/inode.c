/* Inodes, names and file systems: what the tree is made of, and who keeps what alive.
 *
 *	a file keeps its dentry, a dentry its inode and its parent, a directory its pinned names
 */
#include "vfs.h"
#include "ktimer.h"
#include "panic.h"
#include "string.h"
#include "task.h"

struct mutex namespace_lock = MUTEX_INIT(namespace_lock);

static u32 last_dev;

struct super *super_create(const char *type, u64 magic)
{
	struct super *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return NULL;
	s->type = type;
	s->magic = magic;
	s->dev = ++last_dev;
	return s;
}

struct inode *inode_new(struct super *s, u32 mode)
{
	struct inode *inode = kzalloc(sizeof(*inode), GFP_KERNEL);
	struct task *t = current_task();

	if (!inode)
		return NULL;
	inode->refs = 1;
	inode->super = s;
	inode->ino = ++s->next_ino;
	inode->mode = mode;
	inode->uid = t ? t->cred.fsuid : 0;
	inode->gid = t ? t->cred.fsgid : 0;
	inode->nlink = S_ISDIR(mode) ? 2 : 1;
	inode->atime = inode->mtime = inode->ctime = ktime_get_real_ns();
	mutex_init(&inode->lock);
	if (S_ISDIR(mode))
		inode->fops = &dir_file_ops;
	return inode;
}

void iget(struct inode *inode) { __atomic_add_fetch(&inode->refs, 1, __ATOMIC_SEQ_CST); }

void iput(struct inode *inode)
{
	if (!inode || __atomic_sub_fetch(&inode->refs, 1, __ATOMIC_SEQ_CST))
		return;
	if (inode->ops && inode->ops->evict)
		inode->ops->evict(inode);
	shmem_evict_inode(inode);
	kfree(inode->target);
	kfree(inode);
}

/* ---- names ---- */

struct dentry *d_alloc(struct dentry *parent, const char *name, u32 len)
{
	struct dentry *d = kzalloc(sizeof(*d), GFP_KERNEL);

	if (!d)
		return NULL;
	d->name = kmalloc(len + 1, GFP_KERNEL);
	if (!d->name) {
		kfree(d);
		return NULL;
	}
	memcpy(d->name, name, len);
	d->name[len] = 0;
	d->refs = 1;
	d->parent = d;
	INIT_LIST_HEAD(&d->children);
	INIT_LIST_HEAD(&d->sibling);
	if (parent) {
		dget(parent);
		d->parent = parent;
		d->super = parent->super;
	}
	return d;
}

void dget(struct dentry *d) { __atomic_add_fetch(&d->refs, 1, __ATOMIC_SEQ_CST); }

void dput(struct dentry *d)
{
	while (d && !__atomic_sub_fetch(&d->refs, 1, __ATOMIC_SEQ_CST)) {
		struct dentry *parent = d->parent != d ? d->parent : NULL;

		iput(d->inode);
		kfree(d->name);
		kfree(d);
		d = parent;
	}
}

void d_add(struct dentry *parent, struct dentry *d)
{
	dget(d);
	d->cookie = ++parent->next_cookie;
	list_add_tail(&d->sibling, &parent->children);
	if (S_ISDIR(d->inode->mode))
		parent->inode->nlink++;
}

void d_drop(struct dentry *d)
{
	if (list_empty(&d->sibling))
		return;
	list_del_init(&d->sibling);
	d->unlinked = true;
	if (S_ISDIR(d->inode->mode))
		d->parent->inode->nlink--;
	dput(d);
}

struct dentry *d_find(struct dentry *parent, const char *name, u32 len)
{
	struct dentry *d;

	list_for_each_entry(d, &parent->children, sibling)
		if (!strncmp(d->name, name, len) && !d->name[len])
			return d;
	return NULL;
}

struct dentry *d_make_root(struct super *s, struct inode *inode)
{
	struct dentry *d = inode ? d_alloc(NULL, "/", 1) : NULL;

	if (!d) {
		iput(inode);
		return NULL;
	}
	d->super = s;
	d->inode = inode;
	s->root = d;
	return d;
}

struct dentry *vfs_make(struct dentry *dir, const char *name, u32 mode, const struct file_ops *fops, void *private)
{
	u32 len = (u32)strlen(name);
	struct inode *inode = inode_new(dir->super, mode);
	struct dentry *d = inode ? d_alloc(dir, name, len) : NULL;

	if (!d) {
		iput(inode);
		return ERR_PTR(-ENOMEM);
	}
	d->inode = inode;
	if (fops)
		inode->fops = fops;
	inode->private = private;
	inode->ops = S_ISDIR(mode) ? dir->inode->ops : NULL;
	mutex_lock(&namespace_lock);
	if (d_find(dir, name, len)) {
		mutex_unlock(&namespace_lock);
		dput(d);
		return ERR_PTR(-EEXIST);
	}
	d_add(dir, d);
	mutex_unlock(&namespace_lock);
	dput(d);			/* the tree has its own reference */
	return d;
}

static void remove_below(struct dentry *d)
{
	while (!list_empty(&d->children)) {
		struct dentry *child = list_first_entry(&d->children, struct dentry, sibling);

		remove_below(child);
		d_drop(child);
	}
}

void vfs_remove(struct dentry *d)
{
	mutex_lock(&namespace_lock);
	remove_below(d);
	d_drop(d);
	mutex_unlock(&namespace_lock);
}

/* Writes the path backwards from the end of buf. Names that are gone end in " (deleted)". */
ssize_t dentry_path(struct dentry *d, char *buf, u64 size)
{
	static const char deleted[] = " (deleted)";
	struct dentry *root = current_task() ? current_task()->fs->root : rootfs->root;
	u64 at = size;
	u64 len;

	if (size < sizeof(deleted) + 2)
		return -ENAMETOOLONG;
	buf[--at] = 0;
	mutex_lock(&namespace_lock);
	if (d->unlinked) {
		at -= sizeof(deleted) - 1;
		memcpy(buf + at, deleted, sizeof(deleted) - 1);
	}
	while (d != root) {
		if (d->parent == d && d->covers) {
			d = d->covers;
			continue;
		}
		if (d->parent == d && !d->unlinked)
			break;
		len = strlen(d->name);
		if (len + 1 > at) {
			mutex_unlock(&namespace_lock);
			return -ENAMETOOLONG;
		}
		at -= len;
		memcpy(buf + at, d->name, len);
		buf[--at] = '/';
		if (d->parent == d)
			break;
		d = d->parent;
	}
	mutex_unlock(&namespace_lock);
	if (at == size - 1)
		buf[--at] = '/';
	memmove(buf, buf + at, size - at);
	return (ssize_t)(size - at - 1);
}

int inode_permission(const struct inode *inode, u32 want)
{
	struct task *t = current_task();
	u32 have = inode->mode;

	if (!t)
		return 0;
	if (!t->cred.fsuid)		/* root: everything, but execute what somebody may execute */
		return want & 1 && !S_ISDIR(inode->mode) && !(inode->mode & 0111) ? -EACCES : 0;
	if (t->cred.fsuid == inode->uid)
		have >>= 6;
	else if (t->cred.fsgid == inode->gid)
		have >>= 3;
	return want & ~have & 7 ? -EACCES : 0;
}
