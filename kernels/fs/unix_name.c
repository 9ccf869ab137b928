/* Names of AF_UNIX sockets: paths, whose inodes lead to them, and abstract ones. */
#include "unix.h"
#include "string.h"

static LIST_HEAD(bound_sockets);
static u32 next_auto_name;

static struct sock *find_bound(const struct address *a, const struct inode *inode)
{
	struct sock *s;

	list_for_each_entry(s, &bound_sockets, in_bound)
		if (inode ? s->inode == inode :
		    !s->inode && s->address.len == a->len && !memcmp(s->address.name, a->name, a->len))
			return s;
	return NULL;
}

/* The socket of that name, referenced, not locked. */
struct sock *sock_find(const struct address *a, u32 type)
{
	struct dentry *d = NULL;
	struct sock *s;
	int err = 0;

	if (a->name[0]) {
		err = path_lookup(AT_FDCWD, (const char *)a->name, LOOKUP_FOLLOW, &d, NULL);
		if (err)
			return ERR_PTR(err);
		err = inode_permission(d->inode, 2);
		if (!err && !S_ISSOCK(d->inode->mode))
			err = -ECONNREFUSED;
	}
	mutex_lock(&unix_lock);
	s = err ? NULL : find_bound(a, d ? d->inode : NULL);
	if (s)
		sock_get(s);
	mutex_unlock(&unix_lock);
	dput(d);
	if (!s)
		return ERR_PTR(err ? err : -ECONNREFUSED);
	if (s->type != type) {
		sock_put(s);
		return ERR_PTR(-EPROTOTYPE);
	}
	return s;
}

/* Locked. */
static void set_name(struct sock *s, const struct address *a)
{
	s->address = *a;
	s->bound = true;
	list_add_tail(&s->in_bound, &bound_sockets);
}

static int bind_path(struct sock *s, const struct address *a)
{
	struct dentry *d;
	int err = vfs_mknod(AT_FDCWD, (const char *)a->name, S_IFSOCK | 0777, 0);

	if (err)
		return err == -EEXIST ? -EADDRINUSE : err;
	err = path_lookup(AT_FDCWD, (const char *)a->name, 0, &d, NULL);
	if (err)
		return err;
	mutex_lock(&unix_lock);
	if (s->bound) {
		err = -EINVAL;
	} else {
		s->inode = d->inode;
		iget(s->inode);
		set_name(s, a);
	}
	mutex_unlock(&unix_lock);
	dput(d);
	return err;
}

/* The next five hexadecimal digits that nobody has. */
static void auto_name(struct address *a)
{
	static const char digits[] = "0123456789abcdef";

	do {
		u32 n = next_auto_name++;

		a->len = 6;
		a->name[0] = 0;
		for (u32 i = 0; i < 5; i++)
			a->name[1 + i] = (u8)digits[n >> (16 - 4 * i) & 15];
	} while (find_bound(a, NULL));
}

int sock_bind(struct sock *s, const struct address *a)
{
	struct address name = *a;
	int err = 0;

	if (a->len && a->name[0])
		return READ_ONCE(s->bound) ? -EINVAL : bind_path(s, a);
	mutex_lock(&unix_lock);
	if (s->bound)
		err = a->len ? -EINVAL : 0;
	else if (a->len && find_bound(a, NULL))
		err = -EADDRINUSE;
	if (!err && !s->bound) {
		if (!a->len)
			auto_name(&name);
		set_name(s, &name);
	}
	mutex_unlock(&unix_lock);
	return err;
}

void name_forget(struct sock *s)
{
	if (s->bound)
		list_del_init(&s->in_bound);
}
