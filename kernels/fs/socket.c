/* Sockets as files, and their system calls but for messages and options: what comes from programs is read and checked
 * here, and what goes to them is written; the sockets themselves are in unix.c.
 */
#include "socket.h"
#include "poll.h"
#include "printk.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define SOCKFS_MAGIC	0x534f434b
#define SOCK_TYPE_MASK	0xf
#define SOCK_TYPE_MAX	11
#define AF_MAX		46

#define FIONREAD	0x541b
#define SIOCOUTQ	0x5411

/* ---- files ---- */

static struct super *sockfs;

static ssize_t read_buffers(struct file *f, struct buffers *b)
{
	struct incoming in = { 0 };
	ssize_t n;

	if (!b->left)
		return 0;
	n = sock_receive(f->private, b, &in, socket_flags(f, 0));
	rights_put(in.rights);
	return n;
}

static ssize_t write_buffers(struct file *f, struct buffers *b)
{
	struct outgoing o = { .flags = socket_flags(f, 0), .creds = current_ucred(false) };

	return sock_send(f->private, b, &o);
}

static ssize_t socket_read(struct file *f, void *user, u64 size, loff_t *pos)
{
	struct iovec v = { user, size };
	struct buffers b;
	int err = buffers_init(&b, &v, 1);

	(void)pos;
	return err ? err : read_buffers(f, &b);
}

static ssize_t socket_write(struct file *f, const void *user, u64 size, loff_t *pos)
{
	struct iovec v = { (void *)user, size };
	struct buffers b;
	int err = buffers_init(&b, &v, 1);

	(void)pos;
	return err ? err : write_buffers(f, &b);
}

static ssize_t socket_vector(struct file *f, const struct iovec *vec, u64 count, bool write)
{
	struct buffers b;
	int err = buffers_init(&b, vec, count);

	return err ? err : write ? write_buffers(f, &b) : read_buffers(f, &b);
}

static u32 socket_poll(struct file *f, struct poll_table *t)
{
	struct sock *s = f->private;
	u32 events;

	poll_wait(f, &s->wait, t);
	mutex_lock(&unix_lock);
	events = sock_events(s);
	mutex_unlock(&unix_lock);
	return events;
}

static s64 socket_ioctl(struct file *f, u32 cmd, u64 arg)
{
	struct sock *s = f->private;
	u32 n;

	if (cmd != FIONREAD && cmd != SIOCOUTQ)
		return -ENOTTY;
	mutex_lock(&unix_lock);
	if (cmd == SIOCOUTQ)
		n = (u32)s->charged;
	else if (s->type != SOCK_DGRAM || list_empty(&s->queue))
		n = s->nr_bytes;
	else
		n = list_first_entry(&s->queue, struct message, list)->size;
	mutex_unlock(&unix_lock);
	if (cmd == FIONREAD && s->state == SOCK_LISTENING)
		return -EINVAL;
	return put_user((int)n, (int *)arg);
}

static void socket_release(struct file *f)
{
	sock_close(f->private);
}

static void socket_name(struct file *f, char *buf, u64 size)
{
	scnprintf(buf, size, "socket:[%lu]", f->inode->ino);
}

const struct file_ops socket_file_ops = {
	.read = socket_read, .write = socket_write, .vector = socket_vector, .poll = socket_poll, .ioctl = socket_ioctl,
	.release = socket_release, .show_name = socket_name,
};

static int no_open(struct inode *inode, struct file *f)
{
	(void)inode;
	(void)f;
	return -ENXIO;
}
static const struct file_ops socket_node_ops = { .open = no_open, .show_name = socket_name };	/* seen by its path only */

/* Takes over the reference to the socket, if it succeeds. */
static struct file *socket_file(struct sock *s, u32 flags)
{
	struct inode *inode;
	struct file *f;

	if (!sockfs)
		sockfs = super_create("sockfs", SOCKFS_MAGIC);
	inode = sockfs ? inode_new(sockfs, S_IFSOCK | 0777) : NULL;
	if (!inode)
		return ERR_PTR(-ENOMEM);
	inode->fops = &socket_node_ops;
	f = alloc_file_pseudo(inode, "", O_RDWR | (flags & O_NONBLOCK), &socket_file_ops);
	if (IS_ERR(f))
		return f;
	f->private = s;
	mutex_lock(&unix_lock);
	s->file = f;
	mutex_unlock(&unix_lock);
	return f;
}

static struct file *new_socket(u32 type, u32 flags)
{
	struct sock *s = sock_new(type);
	struct file *f;

	if (!s)
		return ERR_PTR(-ENOMEM);
	f = socket_file(s, flags);
	if (IS_ERR(f))
		sock_close(s);
	return f;
}

struct file *get_socket(int fd)
{
	struct file *f = fget(fd);

	if (!f)
		return ERR_PTR(-EBADF);
	if (!sock_of(f)) {
		fput(f);
		return ERR_PTR(-ENOTSOCK);
	}
	return f;
}

/* ---- making ---- */

/* *type: without its flags afterwards. */
static int check_kind(int family, u32 *type, int protocol)
{
	if (*type & ~(u32)(SOCK_TYPE_MASK | O_CLOEXEC | O_NONBLOCK))
		return -EINVAL;
	*type &= SOCK_TYPE_MASK;
	if (family < 0 || family >= AF_MAX)
		return -EAFNOSUPPORT;
	if (*type >= SOCK_TYPE_MAX)
		return -EINVAL;
	if (family != AF_UNIX)
		return -EAFNOSUPPORT;
	if (protocol && protocol != AF_UNIX)
		return -EPROTONOSUPPORT;
	if (*type == SOCK_RAW)
		*type = SOCK_DGRAM;
	return *type == SOCK_STREAM || *type == SOCK_DGRAM || *type == SOCK_SEQPACKET ? 0 : -ESOCKTNOSUPPORT;
}

SYSCALL_DEFINE3(socket, 41, int, family, u32, type, int, protocol)
{
	u32 flags = type;
	struct file *f;
	int err = check_kind(family, &type, protocol), fd;

	if (err)
		return err;
	fd = get_unused_fd(flags);
	if (fd < 0)
		return fd;
	f = new_socket(type, flags);
	if (IS_ERR(f)) {
		put_unused_fd(fd);
		return PTR_ERR(f);
	}
	fd_install(fd, f);
	return fd;
}

static int make_pair(u32 type, u32 flags, struct file *files[2])
{
	files[0] = new_socket(type, flags);
	if (IS_ERR(files[0]))
		return -ENOMEM;
	files[1] = new_socket(type, flags);
	if (IS_ERR(files[1])) {
		fput(files[0]);
		return -ENOMEM;
	}
	sock_pair(files[0]->private, files[1]->private);
	return 0;
}

SYSCALL_DEFINE4(socketpair, 53, int, family, u32, type, int, protocol, int *, user)
{
	u32 flags = type;
	struct file *files[2];
	int fds[2] = { -1, -1 }, err = check_kind(family, &type, protocol);

	if (err)
		return err;
	for (int i = 0; i < 2 && !err; i++) {
		fds[i] = get_unused_fd(flags);
		err = min(fds[i], 0);
	}
	if (!err && copy_to_user(user, fds, sizeof(fds)))
		err = -EFAULT;
	if (!err)
		err = make_pair(type, flags, files);
	for (int i = 0; i < 2; i++) {
		if (!err)
			fd_install(fds[i], files[i]);
		else if (fds[i] >= 0)
			put_unused_fd(fds[i]);
	}
	return err;
}

/* ---- addresses ---- */

int get_address(struct address *a, const void *user, s32 len)
{
	struct sockaddr_un un;

	if (len < 0 || (u64)len > 128)
		return -EINVAL;
	memset(a, 0, sizeof(*a));
	if ((u64)len < sizeof(un.family) || (u64)len > sizeof(un))
		return -EINVAL;
	if (copy_from_user(&un, user, (u64)len))
		return -EFAULT;
	if (un.family != AF_UNIX)
		return un.family == AF_UNSPEC ? -EAFNOSUPPORT : -EINVAL;
	a->len = (u32)len - sizeof(un.family);
	memcpy(a->name, un.path, a->len);
	if (a->len && a->name[0])	/* ends with its NUL, whatever the program says */
		a->len = (u32)strlen((char *)a->name) + 1;
	return 0;
}

int put_address(const struct address *a, void *user, s32 *user_len)
{
	struct sockaddr_un un = { .family = AF_UNIX };
	u8 bytes[sizeof(un) + 1] = { 0 };
	u32 len = sizeof(un.family) + a->len;
	s32 room;

	if (get_user(room, user_len))
		return -EFAULT;
	if (room < 0)
		return -EINVAL;
	memcpy(bytes, &un.family, sizeof(un.family));
	memcpy(bytes + sizeof(un.family), a->name, a->len);
	if (copy_to_user(user, bytes, min((u32)room, len)))
		return -EFAULT;
	return put_user((s32)len, user_len);
}

SYSCALL_DEFINE3(bind, 49, int, fd, const void *, user, s32, len)
{
	struct file *f = get_socket(fd);
	struct address a;
	int err;

	if (IS_ERR(f))
		return PTR_ERR(f);
	err = get_address(&a, user, len);
	if (err == -EAFNOSUPPORT)
		err = -EINVAL;
	if (!err)
		err = sock_bind(f->private, &a);
	fput(f);
	return err;
}

SYSCALL_DEFINE3(connect, 42, int, fd, const void *, user, s32, len)
{
	struct file *f = get_socket(fd);
	struct address a;
	int err;

	if (IS_ERR(f))
		return PTR_ERR(f);
	err = get_address(&a, user, len);
	if (err == -EAFNOSUPPORT)
		err = sock_disconnect(f->private);
	else if (!err)
		err = sock_connect(f->private, &a, !(f->flags & O_NONBLOCK));
	fput(f);
	return err;
}

SYSCALL_DEFINE2(listen, 50, int, fd, u32, backlog)
{
	struct file *f = get_socket(fd);
	int err;

	if (IS_ERR(f))
		return PTR_ERR(f);
	err = sock_listen(f->private, backlog);
	fput(f);
	return err;
}

static int accept_file(struct file *f, u32 flags, void *user, s32 *len, struct file **out)
{
	struct sock *s = sock_accept(f->private, !(f->flags & O_NONBLOCK));
	struct address name = { 0 };
	int err = 0;

	if (IS_ERR(s))
		return (int)PTR_ERR(s);
	if (user) {
		mutex_lock(&unix_lock);
		if (s->peer)
			name = s->peer->address;
		mutex_unlock(&unix_lock);
		err = put_address(&name, user, len);
	}
	*out = err ? ERR_PTR(err) : socket_file(s, flags);
	if (!IS_ERR(*out))
		return 0;
	sock_close(s);
	return (int)PTR_ERR(*out);
}

SYSCALL_DEFINE4(accept4, 288, int, fd, void *, user, s32 *, len, u32, flags)
{
	struct file *f, *new;
	int err, newfd;

	if (flags & ~(u32)(O_CLOEXEC | O_NONBLOCK))
		return -EINVAL;
	f = get_socket(fd);
	if (IS_ERR(f))
		return PTR_ERR(f);
	newfd = get_unused_fd(flags);
	err = newfd < 0 ? newfd : accept_file(f, flags, user, len, &new);
	if (!err)
		fd_install(newfd, new);
	else if (newfd >= 0)
		put_unused_fd(newfd);
	fput(f);
	return err ? err : newfd;
}
SYSCALL_DEFINE3(accept, 43, int, fd, void *, user, s32 *, len)
{
	return sys_accept4(fd, user, len, 0);
}

SYSCALL_DEFINE2(shutdown, 48, int, fd, int, how)
{
	struct file *f = get_socket(fd);
	int err;

	if (IS_ERR(f))
		return PTR_ERR(f);
	err = sock_shutdown(f->private, how);
	fput(f);
	return err;
}

static s64 get_name(int fd, void *user, s32 *len, bool of_peer)
{
	struct file *f = get_socket(fd);
	struct address a = { 0 };
	struct sock *s;
	int err = 0;

	if (IS_ERR(f))
		return PTR_ERR(f);
	s = f->private;
	mutex_lock(&unix_lock);
	if (!of_peer)
		a = s->address;
	else if (s->peer)
		a = s->peer->address;
	else
		err = -ENOTCONN;
	mutex_unlock(&unix_lock);
	fput(f);
	return err ? err : put_address(&a, user, len);
}

SYSCALL_DEFINE3(getsockname, 51, int, fd, void *, user, s32 *, len)
{
	return get_name(fd, user, len, false);
}
SYSCALL_DEFINE3(getpeername, 52, int, fd, void *, user, s32 *, len)
{
	return get_name(fd, user, len, true);
}
