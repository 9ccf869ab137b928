/* getsockopt(2), setsockopt(2): socket(7). */
#include "socket.h"
#include "ktimer.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

enum {
	SO_DEBUG = 1, SO_REUSEADDR, SO_TYPE, SO_ERROR, SO_DONTROUTE, SO_BROADCAST, SO_SNDBUF, SO_RCVBUF, SO_KEEPALIVE,
	SO_OOBINLINE, SO_NO_CHECK, SO_PRIORITY, SO_LINGER, SO_REUSEPORT = 15, SO_PASSCRED, SO_PEERCRED, SO_RCVLOWAT,
	SO_SNDLOWAT, SO_RCVTIMEO, SO_SNDTIMEO, SO_ACCEPTCONN = 30, SO_SNDBUFFORCE = 32, SO_RCVBUFFORCE, SO_PROTOCOL = 38,
	SO_DOMAIN,
};
#define BUFFER_MAX	212992U		/* of what a program asks for; twice that is given */
#define SEND_BUFFER_MIN	4608U
#define RECEIVE_BUFFER_MIN 2304U

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
