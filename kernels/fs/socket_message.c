/* sendmsg(2), recvmsg(2) and their relatives, with ancillary data (cmsg(3)): files and credentials. */
#include "socket.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define IOV_MAX		1024
#define CONTROL_MAX	20480U		/* bytes of ancillary data in a message */

#define SCM_RIGHTS	1
#define SCM_CREDENTIALS	2

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
	struct outgoing o = { .flags = socket_flags(f, flags), .creds = current_ucred(false) };
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
	ssize_t n = sock_receive(s, b, &in, socket_flags(f, flags));
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
