/* Sockets as files, and their system calls: what comes from programs is read and checked here, and what goes to them is
 * written; the sockets themselves are in unix.c.
 */
#include "socket.h"
#include "ktimer.h"
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
#define IOV_MAX		1024
#define CONTROL_MAX	20480U		/* bytes of ancillary data in a message */

#define FIONREAD	0x541b
#define SIOCOUTQ	0x5411

#define SOL_SOCKET	1
#define SCM_RIGHTS	1
#define SCM_CREDENTIALS	2
enum {
	SO_DEBUG = 1, SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_DONTROUTE, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE,
	SO_OOBINLINE, SO_NO_CHECK, SO_PRIORITY, SO_LINGER, SO_REUSEPORT = 15, SO_PASSCRED, SO_PEERCRED, SO_RCVLOWAT,
	SO_SNDLOWAT, SO_RCVTIMEO, SO_SNDTIMEO, SO_ACCEPTCONN = 30, SO_SNDBUFFORCE = 32, SO_RCVBUFFORCE, SO_PROTOCOL = 38,
	SO_DOMAIN,
};
#define BUFFER_MAX	212992U		/* of what a program asks for; twice that is given */
#define SEND_BUFFER_MIN	4608U
#define RECEIVE_BUFFER_MIN 2304U

struct msghdr {
	void *name;
	s32 name_len;
	u32 pad;
	struct iovec *iov;
	u64 iov_len;
	void *control;
	u64 control_len;
	u32 flags, pad2;
};
static_assert(sizeof(struct msghdr) == 56, "user ABI");

struct cmsghdr {
	u64 len;
	s32 level, type;
};

/* ---- files ---- */

static struct super *sockfs;

static u32 call_flags(const struct file *f, u32 flags)
{
	return flags | (f->flags & O_NONBLOCK ? MSG_DONTWAIT : 0);
}

static ssize_t read_buffers(struct file *f, struct buffers *b)
{
	struct incoming in = { 0 };
	ssize_t n;

	if (!b->left)
		return 0;
	n = sock_receive(f->private, b, &in, call_flags(f, 0));
	rights_put(in.rights);
	return n;
}

static ssize_t write_buffers(struct file *f, struct buffers *b)
{
	struct outgoing o = { .flags = call_flags(f, 0), .creds = current_ucred(false) };

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

/* A reference to the file, ERR_PTR. */
static struct file *get_socket(int fd)
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

/* 0 and a->len 0: the family alone. */
static int get_address(struct address *a, const void *user, s32 len)
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

/* As much as there is room for; *len says how long it is. */
static int put_address(const struct address *a, void *user, s32 *user_len)
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

/* ---- ancillary data ---- */

static u64 cmsg_align(u64 len) { return ALIGN_UP(len, 8UL); }

static int get_rights(const struct cmsghdr *c, struct outgoing *o)
{
	u64 count = (c->len - sizeof(*c)) / sizeof(int);
	struct rights *r;

	if (count > RIGHTS_MAX)
		return -EINVAL;
	if (o->rights && o->rights->count + count > RIGHTS_MAX)
		return -EINVAL;
	if (!count)
		return 0;
	r = rights_get((const int *)(c + 1), (u32)count);
	if (IS_ERR(r))
		return (int)PTR_ERR(r);
	if (!o->rights) {
		o->rights = r;
		return 0;
	}
	memcpy(o->rights->files + o->rights->count, r->files, count * sizeof(r->files[0]));
	o->rights->count += (u32)count;
	kfree(r);
	return 0;
}

/* Privileged programs may say that they are others. */
static int get_credentials(const struct cmsghdr *c, struct outgoing *o)
{
	const struct cred *mine = &current_task()->cred;
	struct ucred u;

	if (c->len != sizeof(*c) + sizeof(u))
		return -EINVAL;
	memcpy(&u, c + 1, sizeof(u));
	if (!capable() &&
	    (u.pid != current_process()->pid ||
	     (u.uid != mine->uid && u.uid != mine->euid && u.uid != mine->suid) ||
	     (u.gid != mine->gid && u.gid != mine->egid && u.gid != mine->sgid)))
		return -EPERM;
	if (u.pid != current_process()->pid) {
		struct process *p = find_process(u.pid);

		if (!p)
			return -ESRCH;
		process_put(p);
	}
	o->creds = u;
	return 0;
}

static int parse_control(const u8 *control, u64 size, struct outgoing *o)
{
	u64 at = 0;

	while (size - at >= sizeof(struct cmsghdr)) {
		const struct cmsghdr *c = (const struct cmsghdr *)(control + at);
		int err = 0;

		if (c->len < sizeof(*c) || c->len > size - at)
			return -EINVAL;
		if (c->level == SOL_SOCKET) {
			switch (c->type) {
			case SCM_RIGHTS:
				err = get_rights(c, o);
				break;
			case SCM_CREDENTIALS:
				err = get_credentials(c, o);
				break;
			default:
				err = -EINVAL;
			}
		}
		if (err)
			return err;
		if (cmsg_align(c->len) >= size - at)
			break;
		at += cmsg_align(c->len);
	}
	if (o->rights && rights_too_many())
		return -ETOOMANYREFS;
	return 0;
}

static int get_control(const struct msghdr *m, struct outgoing *o)
{
	u8 *control;
	int err;

	if (!m->control_len)
		return 0;
	if (m->control_len > CONTROL_MAX)
		return -ENOBUFS;
	control = kmalloc(m->control_len, GFP_KERNEL);
	if (!control)
		return -ENOMEM;
	err = copy_from_user(control, m->control, m->control_len) ? -EFAULT
								  : parse_control(control, m->control_len, o);
	kfree(control);
	return err;
}

/* What does not fit is cut off, and the flags say so. */
static void put_control(struct msghdr *m, s32 type, const void *data, u64 size)
{
	struct cmsghdr c = { .len = sizeof(c) + size, .level = SOL_SOCKET, .type = type };

	if (!m->control || m->control_len < sizeof(c)) {
		m->flags |= MSG_CTRUNC;
		return;
	}
	if (m->control_len < c.len) {
		m->flags |= MSG_CTRUNC;
		c.len = m->control_len;
	}
	if (copy_to_user(m->control, &c, sizeof(c)) ||
	    copy_to_user((u8 *)m->control + sizeof(c), data, c.len - sizeof(c)))
		return;
	size = min(cmsg_align(c.len), m->control_len);
	m->control = (u8 *)m->control + size;
	m->control_len -= size;
}

/* Descriptors for as many files as there is room for. */
static void put_rights(struct msghdr *m, struct rights *r, u32 flags)
{
	u64 room = m->control && m->control_len > sizeof(struct cmsghdr)
		   ? (m->control_len - sizeof(struct cmsghdr)) / sizeof(int) : 0;
	int *to = (int *)((u8 *)m->control + sizeof(struct cmsghdr));
	struct cmsghdr c = { .level = SOL_SOCKET, .type = SCM_RIGHTS };
	u32 n = 0;

	for (; n < r->count && n < room; n++) {
		int fd = get_unused_fd(flags & MSG_CMSG_CLOEXEC ? O_CLOEXEC : 0);

		if (fd < 0)
			break;
		if (put_user(fd, &to[n])) {
			put_unused_fd(fd);
			break;
		}
		fd_install(fd, r->files[n]);
		r->files[n] = NULL;
	}
	if (n < r->count)
		m->flags |= MSG_CTRUNC;
	c.len = sizeof(c) + n * sizeof(int);
	if (n && !copy_to_user(m->control, &c, sizeof(c))) {
		u64 size = min(cmsg_align(c.len), m->control_len);

		m->control = (u8 *)m->control + size;
		m->control_len -= size;
	}
}

/* ---- messages ---- */

/* The vector is copied; free it with kfree(). */
static int get_vector(const struct msghdr *m, struct iovec **vec, struct buffers *b)
{
	int err;

	if (m->iov_len > IOV_MAX)
		return -EMSGSIZE;
	*vec = kmalloc(m->iov_len * sizeof(**vec) + 1, GFP_KERNEL);
	if (!*vec)
		return -ENOMEM;
	err = copy_from_user(*vec, m->iov, m->iov_len * sizeof(**vec)) ? -EFAULT : buffers_init(b, *vec, m->iov_len);
	if (err)
		kfree(*vec);
	return err;
}

static ssize_t send_message(struct file *f, const struct msghdr *m, struct buffers *b, u32 flags)
{
	struct outgoing o = { .flags = call_flags(f, flags), .creds = current_ucred(false) };
	struct address to;
	ssize_t n = get_control(m, &o);

	if (!n && m->name && m->name_len) {
		n = get_address(&to, m->name, m->name_len);
		if (n == -EAFNOSUPPORT || (!n && !to.len))
			n = -EINVAL;
		o.to = &to;
	}
	if (!n)
		n = sock_send(f->private, b, &o);
	rights_put(o.rights);
	return n;
}

static s64 do_sendmsg(struct file *f, const struct msghdr *user, u32 flags)
{
	struct buffers b;
	struct iovec *vec;
	struct msghdr m;
	ssize_t n;

	if (copy_from_user(&m, user, sizeof(m)))
		return -EFAULT;
	if (m.name && m.name_len < 0)
		return -EINVAL;
	n = get_vector(&m, &vec, &b);
	if (n)
		return n;
	n = send_message(f, &m, &b, flags);
	kfree(vec);
	return n;
}

SYSCALL_DEFINE3(sendmsg, 46, int, fd, const struct msghdr *, user, u32, flags)
{
	struct file *f = get_socket(fd);
	s64 n;

	if (IS_ERR(f))
		return PTR_ERR(f);
	n = do_sendmsg(f, user, flags);
	fput(f);
	return n;
}

SYSCALL_DEFINE6(sendto, 44, int, fd, void *, data, u64, size, u32, flags, void *, to, s32, to_len)
{
	struct msghdr m = { .name = to, .name_len = to ? to_len : 0 };
	struct iovec v = { data, min(size, RW_MAX) };
	struct buffers b;
	struct file *f;
	s64 n = buffers_init(&b, &v, 1);

	if (n)
		return n;
	f = get_socket(fd);
	if (IS_ERR(f))
		return PTR_ERR(f);
	n = send_message(f, &m, &b, flags);
	fput(f);
	return n;
}

/* m: as the program gave it; what there is to say is put into it. */
static ssize_t receive_message(struct file *f, struct msghdr *m, struct buffers *b, s32 *name_len, u32 flags)
{
	struct incoming in = { 0 };
	struct sock *s = f->private;
	ssize_t n = sock_receive(s, b, &in, call_flags(f, flags));
	int err = 0;

	if (n >= 0) {
		m->flags = in.flags | (flags & MSG_CMSG_CLOEXEC);
		if (s->pass_creds && in.any)
			put_control(m, SCM_CREDENTIALS, &in.creds, sizeof(in.creds));
		if (in.rights)
			put_rights(m, in.rights, flags);
		if (m->name && s->type == SOCK_DGRAM && in.from.len)
			err = put_address(&in.from, m->name, name_len);
		else if (m->name)
			err = put_user(0, name_len);
	}
	rights_put(in.rights);
	return err ? err : n;
}

static s64 do_recvmsg(struct file *f, struct msghdr *user, u32 flags)
{
	struct buffers b;
	struct iovec *vec;
	struct msghdr m;
	u64 room;
	ssize_t n;

	if (copy_from_user(&m, user, sizeof(m)))
		return -EFAULT;
	if (m.name && m.name_len < 0)
		return -EINVAL;
	n = get_vector(&m, &vec, &b);
	if (n)
		return n;
	room = m.control_len;
	n = receive_message(f, &m, &b, &user->name_len, flags);
	kfree(vec);
	if (n >= 0 && (put_user(m.flags, &user->flags) || put_user(room - m.control_len, &user->control_len)))
		return -EFAULT;
	return n;
}

SYSCALL_DEFINE3(recvmsg, 47, int, fd, struct msghdr *, user, u32, flags)
{
	struct file *f = get_socket(fd);
	s64 n;

	if (IS_ERR(f))
		return PTR_ERR(f);
	n = do_recvmsg(f, user, flags);
	fput(f);
	return n;
}

SYSCALL_DEFINE6(recvfrom, 45, int, fd, void *, data, u64, size, u32, flags, void *, from, s32 *, from_len)
{
	struct iovec v = { data, min(size, RW_MAX) };
	struct msghdr m = { .name = from };
	struct buffers b;
	struct file *f;
	s64 n = buffers_init(&b, &v, 1);

	if (n)
		return n;
	f = get_socket(fd);
	if (IS_ERR(f))
		return PTR_ERR(f);
	n = receive_message(f, &m, &b, from_len, flags);
	fput(f);
	return n;
}

/* ---- options ---- */

struct timeval {
	s64 sec, usec;
};
struct linger {
	s32 on, seconds;
};

static int set_timeout(u64 *timeout, const void *user, s32 len)
{
	struct timeval t;

	if (len < (s32)sizeof(t))
		return -EINVAL;
	if (copy_from_user(&t, user, sizeof(t)))
		return -EFAULT;
	if (t.usec < 0 || t.usec >= 1000000)
		return -EDOM;
	*timeout = t.sec < 0 ? 1 : min((u64)t.sec, 1UL << 32) * NSEC_PER_SEC + (u64)t.usec * NSEC_PER_USEC;
	return 0;
}

static int set_option(struct sock *s, int name, const void *user, s32 len)
{
	int value;

	if (name == SO_RCVTIMEO || name == SO_SNDTIMEO)
		return set_timeout(name == SO_RCVTIMEO ? &s->receive_timeout : &s->send_timeout, user, len);
	if (len < (s32)sizeof(value))
		return -EINVAL;
	if (get_user(value, (const int *)user))
		return -EFAULT;
	switch (name) {
	case SO_SNDBUFFORCE:
	case SO_RCVBUFFORCE:
		if (!capable())
			return -EPERM;
		__attribute__((fallthrough));
	case SO_SNDBUF:
	case SO_RCVBUF:
		value = (int)min((u32)max(value, 0), BUFFER_MAX) * 2;
		if (name == SO_SNDBUF || name == SO_SNDBUFFORCE)
			s->send_buffer = max((u32)value, SEND_BUFFER_MIN);
		else
			s->receive_buffer = max((u32)value, RECEIVE_BUFFER_MIN);
		wake_up(&s->wait);
		return 0;
	case SO_PASSCRED:
		s->pass_creds = value;
		return 0;
	case SO_LINGER:
		return len < (s32)sizeof(struct linger) ? -EINVAL : 0;
	case SO_DEBUG:
		return value && !capable() ? -EACCES : 0;
	case SO_REUSEADDR:
	case SO_REUSEPORT:
	case SO_DONTROUTE:
	case SO_BROADCAST:
	case SO_KEEPALIVE:
	case SO_OOBINLINE:
	case SO_NO_CHECK:
	case SO_PRIORITY:
	case SO_RCVLOWAT:
		return 0;			/* nothing to do for it here */
	default:
		return -ENOPROTOOPT;
	}
}

SYSCALL_DEFINE5(setsockopt, 54, int, fd, int, level, int, name, const void *, user, s32, len)
{
	struct file *f;
	s64 err;

	if (len < 0)
		return -EINVAL;
	f = get_socket(fd);
	if (IS_ERR(f))
		return PTR_ERR(f);
	err = level == SOL_SOCKET ? set_option(f->private, name, user, len) : -EOPNOTSUPP;
	fput(f);
	return err;
}

/* The value in *out; its size, or -ENOPROTOOPT. */
static int get_option(struct sock *s, int name, void *out)
{
	int value;

	switch (name) {
	case SO_TYPE:
		value = (int)s->type;
		break;
	case SO_DOMAIN:
		value = AF_UNIX;
		break;
	case SO_ERROR:
		value = s->error;
		s->error = 0;
		break;
	case SO_SNDBUF:
		value = (int)s->send_buffer;
		break;
	case SO_RCVBUF:
		value = (int)s->receive_buffer;
		break;
	case SO_PASSCRED:
		value = s->pass_creds;
		break;
	case SO_ACCEPTCONN:
		value = s->state == SOCK_LISTENING;
		break;
	case SO_RCVLOWAT:
	case SO_SNDLOWAT:
		value = 1;
		break;
	case SO_PROTOCOL:
	case SO_DEBUG:
	case SO_REUSEADDR:
	case SO_REUSEPORT:
	case SO_DONTROUTE:
	case SO_BROADCAST:
	case SO_KEEPALIVE:
	case SO_OOBINLINE:
	case SO_NO_CHECK:
	case SO_PRIORITY:
		value = 0;
		break;
	case SO_PEERCRED: {
		struct ucred none = { .pid = 0, .uid = ~0U, .gid = ~0U };
		bool known = s->of_peer.pid;

		memcpy(out, known ? &s->of_peer : &none, sizeof(none));
		return sizeof(none);
	}
	case SO_LINGER:
		memset(out, 0, sizeof(struct linger));
		return sizeof(struct linger);
	case SO_RCVTIMEO:
	case SO_SNDTIMEO: {
		u64 ns = name == SO_RCVTIMEO ? s->receive_timeout : s->send_timeout;
		struct timeval t = { (s64)(ns / NSEC_PER_SEC), (s64)(ns % NSEC_PER_SEC / NSEC_PER_USEC) };

		memcpy(out, &t, sizeof(t));
		return sizeof(t);
	}
	default:
		return -ENOPROTOOPT;
	}
	memcpy(out, &value, sizeof(value));
	return sizeof(value);
}

static s64 do_getsockopt(struct sock *s, int name, void *user, s32 *user_len)
{
	u8 out[16];
	s32 room;
	int n;

	if (get_user(room, user_len))
		return -EFAULT;
	if (room < 0)
		return -EINVAL;
	mutex_lock(&unix_lock);
	n = get_option(s, name, out);
	mutex_unlock(&unix_lock);
	if (n < 0)
		return n;
	n = min(n, room);
	return copy_to_user(user, out, (u64)n) || put_user(n, user_len) ? -EFAULT : 0;
}

SYSCALL_DEFINE5(getsockopt, 55, int, fd, int, level, int, name, void *, user, s32 *, len)
{
	struct file *f = get_socket(fd);
	s64 err;

	if (IS_ERR(f))
		return PTR_ERR(f);
	err = level == SOL_SOCKET ? do_getsockopt(f->private, name, user, len) : -EOPNOTSUPP;
	fput(f);
	return err;
}
