/* AF_UNIX sockets: connecting, and moving messages.
 *
 * A socket has a queue of the messages that were sent to it. A stream is a queue whose message borders do not count. What
 * a socket has sent and nobody has read is charged to it, so that it can fill no more than its send buffer.
 *
 * One lock for all sockets: whatever happens concerns two of them. Programs' memory is not touched under it and no file
 * is closed; whoever takes messages out without reading them gives them to messages_free() afterwards.
 */
#include "socket.h"
#include "ktimer.h"
#include "poll.h"
#include "string.h"
#include "syscall.h"
#include "task.h"
#include "uaccess.h"

#define BUFFER_DEFAULT	212992U
#define PIECE_MAX	32768U		/* of a stream, in one message */
#define OVERHEAD	576U		/* what a message is charged for besides its bytes */
#define DATAGRAMS_MAX	10U		/* unread ones, of all senders */
#define BACKLOG_MAX	4096U

struct mutex unix_lock = MUTEX_INIT(unix_lock);
LIST_HEAD(all_sockets);
u32 nr_sockets;
static LIST_HEAD(bound_sockets);
static struct wait_queue datagram_room = WAIT_QUEUE_INIT(datagram_room);
static u32 next_auto_name;

struct ucred current_ucred(bool effective)
{
	const struct cred *c = &current_task()->cred;

	return (struct ucred){ .pid = current_process()->pid, .uid = effective ? c->euid : c->uid,
			       .gid = effective ? c->egid : c->gid };
}

static bool is_connection(const struct sock *s) { return s->type != SOCK_DGRAM; }

/* ---- life ---- */

struct sock *sock_new(u32 type)
{
	struct sock *s = kzalloc(sizeof(*s), GFP_KERNEL);

	if (!s)
		return NULL;
	s->refs = 1;
	s->type = type;
	s->send_buffer = s->receive_buffer = BUFFER_DEFAULT;
	init_wait_queue(&s->wait);
	mutex_init(&s->reader);
	INIT_LIST_HEAD(&s->clients);
	INIT_LIST_HEAD(&s->in_clients);
	INIT_LIST_HEAD(&s->queue);
	INIT_LIST_HEAD(&s->backlog);
	INIT_LIST_HEAD(&s->in_backlog);
	INIT_LIST_HEAD(&s->in_bound);
	INIT_LIST_HEAD(&s->in_search);
	mutex_lock(&unix_lock);
	list_add_tail(&s->all, &all_sockets);
	nr_sockets++;
	mutex_unlock(&unix_lock);
	return s;
}

void sock_get(struct sock *s) { __atomic_add_fetch(&s->refs, 1, __ATOMIC_SEQ_CST); }

void sock_put(struct sock *s)
{
	if (!s || __atomic_sub_fetch(&s->refs, 1, __ATOMIC_SEQ_CST))
		return;
	if (s->inode)
		iput(s->inode);
	kfree(s);
}

/* ---- queues; unix_lock held ---- */

static u64 charge_of(const struct message *m) { return m->size + OVERHEAD; }

/* Others may fill it again: its clients, and those who wait to send without being connected. */
static void wake_senders(struct sock *s)
{
	struct sock *c;

	list_for_each_entry(c, &s->clients, in_clients)
		wake_up(&c->wait);
	wake_up(&datagram_room);
}

static void enqueue(struct sock *to, struct message *m)
{
	m->sender->charged += charge_of(m);
	to->nr_queued++;
	to->nr_bytes += m->size;
	rights_count(m->rights, true);
	list_add_tail(&m->list, &to->queue);
	wake_up(&to->wait);
}

static void dequeue(struct sock *from, struct message *m)
{
	list_del(&m->list);
	rights_count(m->rights, false);
	if (from->type == SOCK_DGRAM && from->nr_queued > DATAGRAMS_MAX)
		wake_senders(from);
	from->nr_queued--;
	from->nr_bytes -= m->size - m->taken;
	m->sender->charged -= charge_of(m);
	wake_up(&m->sender->wait);
}

void sock_empty(struct sock *s, struct list_head *doomed)
{
	while (!list_empty(&s->queue)) {
		struct message *m = list_first_entry(&s->queue, struct message, list);

		dequeue(s, m);
		list_add_tail(&m->list, doomed);
	}
}

static void set_peer(struct sock *s, struct sock *peer)
{
	if (s->peer && s->type == SOCK_DGRAM)
		list_del_init(&s->in_clients);
	s->peer = peer;
	if (peer && s->type == SOCK_DGRAM)
		list_add_tail(&s->in_clients, &peer->clients);
}

/* The other end of a connection notices. */
static void leave_peer(struct sock *s, bool lost_something)
{
	struct sock *p = s->peer;

	if (!p)
		return;
	set_peer(s, NULL);
	if (!is_connection(s))
		return;
	p->peer = NULL;
	p->shut_read = p->shut_write = true;
	if (lost_something)
		p->error = ECONNRESET;
	wake_up(&p->wait);
}

static void close_locked(struct sock *s, struct list_head *doomed)
{
	bool lost = !list_empty(&s->queue) || !s->file;

	s->dead = true;
	list_del(&s->all);
	nr_sockets--;
	if (s->bound)
		list_del_init(&s->in_bound);
	leave_peer(s, lost);
	while (!list_empty(&s->clients)) {
		struct sock *c = list_first_entry(&s->clients, struct sock, in_clients);

		set_peer(c, NULL);
		c->peer_gone = true;
		wake_up(&c->wait);
	}
	sock_empty(s, doomed);
	wake_up(&s->wait);
	wake_up(&datagram_room);
}

void sock_close(struct sock *s)
{
	LIST_HEAD(doomed);
	LIST_HEAD(unaccepted);

	mutex_lock(&unix_lock);
	while (!list_empty(&s->backlog)) {
		struct sock *c = list_first_entry(&s->backlog, struct sock, in_backlog);

		list_move_tail(&c->in_backlog, &unaccepted);
		close_locked(c, &doomed);
	}
	close_locked(s, &doomed);
	s->file = NULL;
	collect_garbage(&doomed);
	mutex_unlock(&unix_lock);
	messages_free(&doomed);
	while (!list_empty(&unaccepted)) {
		struct sock *c = list_first_entry(&unaccepted, struct sock, in_backlog);

		list_del(&c->in_backlog);
		sock_put(c);
	}
	sock_put(s);
}

/* ---- waiting; unix_lock is held before and after, not meanwhile ---- */

struct waiting {
	struct sock *s, *other;
};

/* 0: look again. -EAGAIN: not allowed to wait, or long enough. */
static int wait_for(struct wait_queue *q, bool (*condition)(void *), struct waiting *w, bool wait, u64 timeout,
		    u64 *deadline)
{
	int err;

	if (!wait)
		return -EAGAIN;
	if (timeout && !*deadline)
		*deadline = deadline_after(timeout);
	mutex_unlock(&unix_lock);
	err = wait_until(q, condition, w, *deadline);
	mutex_lock(&unix_lock);
	return err == -ETIMEDOUT ? -EAGAIN : err == -ERESTARTSYS && timeout ? -EINTR : err;
}

static bool can_charge(void *arg)
{
	const struct sock *s = ((struct waiting *)arg)->s;

	return s->charged < s->send_buffer || s->shut_write || s->dead;
}

static bool can_take(void *arg)
{
	const struct sock *s = ((struct waiting *)arg)->s;

	return !list_empty(&s->queue) || s->shut_read || s->error;
}

static bool can_queue(void *arg)
{
	const struct waiting *w = arg;

	return w->other->nr_queued <= DATAGRAMS_MAX || w->other->dead || w->other->shut_read || w->s->shut_write;
}

static bool can_connect(void *arg)
{
	const struct sock *o = ((struct waiting *)arg)->other;

	return o->nr_backlog <= o->backlog_max || o->dead || o->state != SOCK_LISTENING;
}

static bool can_accept(void *arg)
{
	const struct sock *s = ((struct waiting *)arg)->s;

	return !list_empty(&s->backlog) || s->shut_read;
}

/* ---- names ---- */

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
static struct sock *find_socket(const struct address *a, u32 type)
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

/* ---- connections ---- */

static void join(struct sock *a, struct sock *b)
{
	a->state = b->state = SOCK_CONNECTED;
	set_peer(a, b);
	set_peer(b, a);
}

void sock_pair(struct sock *a, struct sock *b)
{
	mutex_lock(&unix_lock);
	join(a, b);
	a->own = b->own = a->of_peer = b->of_peer = current_ucred(true);
	mutex_unlock(&unix_lock);
}

int sock_listen(struct sock *s, u32 backlog)
{
	int err = 0;

	mutex_lock(&unix_lock);
	if (!is_connection(s)) {
		err = -EOPNOTSUPP;
	} else if (!s->bound || s->state == SOCK_CONNECTED) {
		err = -EINVAL;
	} else {
		s->backlog_max = min(backlog, BACKLOG_MAX);
		s->state = SOCK_LISTENING;
		s->own = s->of_peer = current_ucred(true);
		wake_up(&s->wait);
		wake_up(&datagram_room);
	}
	mutex_unlock(&unix_lock);
	return err;
}

static int connect_datagram(struct sock *s, struct sock *other)
{
	if (other->dead)
		return -ECONNREFUSED;
	if (other->peer && other->peer != s)
		return -EPERM;
	s->peer_gone = false;
	s->state = SOCK_CONNECTED;
	set_peer(s, other);
	return 0;
}

/* `accepted` will be the other end. Locked. */
static int connect_stream(struct sock *s, struct sock *other, struct sock *accepted, bool wait)
{
	struct waiting w = { .s = s, .other = other };
	u64 deadline = 0;
	int err;

	while (1) {
		if (s->state != SOCK_UNCONNECTED)
			return s->state == SOCK_CONNECTED ? -EISCONN : -EINVAL;
		if (other->dead || other->state != SOCK_LISTENING || other->shut_read)
			return -ECONNREFUSED;
		if (other->nr_backlog <= other->backlog_max)
			break;
		err = wait_for(&datagram_room, can_connect, &w, wait, s->send_timeout, &deadline);
		if (err)
			return err;
	}
	s->own = accepted->of_peer = current_ucred(true);
	s->of_peer = accepted->own = other->own;
	accepted->address = other->address;
	accepted->pass_creds = other->pass_creds;
	join(s, accepted);
	sock_get(accepted);
	list_add_tail(&accepted->in_backlog, &other->backlog);
	other->nr_backlog++;
	wake_up(&other->wait);
	return 0;
}

int sock_connect(struct sock *s, const struct address *a, bool wait)
{
	struct sock *other, *accepted = NULL;
	LIST_HEAD(doomed);
	int err;

	if (!a->len)
		return -EINVAL;
	other = find_socket(a, s->type);
	if (IS_ERR(other))
		return (int)PTR_ERR(other);
	if (is_connection(s)) {
		accepted = sock_new(s->type);
		if (!accepted) {
			sock_put(other);
			return -ENOMEM;
		}
	}
	mutex_lock(&unix_lock);
	err = accepted ? connect_stream(s, other, accepted, wait) : connect_datagram(s, other);
	if (accepted && err)
		close_locked(accepted, &doomed);
	mutex_unlock(&unix_lock);
	sock_put(accepted);
	sock_put(other);
	return err;
}

int sock_disconnect(struct sock *s)
{
	if (is_connection(s))
		return -EINVAL;
	mutex_lock(&unix_lock);
	set_peer(s, NULL);
	s->state = SOCK_UNCONNECTED;
	mutex_unlock(&unix_lock);
	return 0;
}

struct sock *sock_accept(struct sock *s, bool wait)
{
	struct waiting w = { .s = s };
	struct sock *c = NULL;
	u64 deadline = 0;
	int err = 0;

	if (!is_connection(s))
		return ERR_PTR(-EOPNOTSUPP);
	mutex_lock(&unix_lock);
	while (!err && !c) {
		if (s->state != SOCK_LISTENING || s->shut_read) {
			err = -EINVAL;
		} else if (list_empty(&s->backlog)) {
			err = wait_for(&s->wait, can_accept, &w, wait, s->receive_timeout, &deadline);
		} else {
			c = list_first_entry(&s->backlog, struct sock, in_backlog);
			list_del_init(&c->in_backlog);
			s->nr_backlog--;
			wake_up(&datagram_room);
		}
	}
	mutex_unlock(&unix_lock);
	return c ? c : ERR_PTR(err);
}

int sock_shutdown(struct sock *s, int how)
{
	bool read = how != 1, write = how != 0;

	if (how < 0 || how > 2)
		return -EINVAL;
	mutex_lock(&unix_lock);
	s->shut_read |= read;
	s->shut_write |= write;
	if (s->peer && is_connection(s)) {
		s->peer->shut_write |= read;
		s->peer->shut_read |= write;
		wake_up(&s->peer->wait);
	}
	wake_up(&s->wait);
	wake_senders(s);
	mutex_unlock(&unix_lock);
	return 0;
}

/* ---- sending ---- */

static struct message *message_new(struct sock *sender, const struct outgoing *o, struct buffers *b, u64 size)
{
	struct message *m = kmalloc(sizeof(*m) + size, GFP_KERNEL);

	if (!m)
		return ERR_PTR(-ENOMEM);
	memset(m, 0, sizeof(*m));
	m->creds = o->creds;
	m->size = (u32)size;
	if (buffers_read(b, m->data, size)) {
		kfree(m);
		return ERR_PTR(-EFAULT);
	}
	m->sender = sender;
	sock_get(sender);
	return m;
}

static void message_drop(struct message *m)
{
	sock_put(m->sender);
	kfree(m);
}

static int take_error(struct sock *s)
{
	int err = s->error;

	s->error = 0;
	return -err;
}

/* Until it may be charged for more; locked. */
static int wait_charge(struct sock *s, bool wait, u64 *deadline)
{
	struct waiting w = { .s = s };
	int err = 0;

	while (!err && s->charged >= s->send_buffer && !s->shut_write)
		err = wait_for(&s->wait, can_charge, &w, wait, s->send_timeout, deadline);
	return err;
}

static ssize_t send_stream(struct sock *s, struct buffers *b, struct outgoing *o)
{
	bool wait = !(o->flags & MSG_DONTWAIT);
	u64 size = b->left, done = 0, deadline = 0;
	int err = 0;

	if (o->to)
		return s->state == SOCK_CONNECTED ? -EISCONN : -EOPNOTSUPP;
	if (s->state != SOCK_CONNECTED)
		return -ENOTCONN;
	if (s->shut_write)
		return -EPIPE;
	while (!err && done < size) {
		struct message *m = message_new(s, o, b, min(size - done, (u64)PIECE_MAX));

		if (IS_ERR(m)) {
			err = (int)PTR_ERR(m);
			break;
		}
		mutex_lock(&unix_lock);
		err = wait_charge(s, wait, &deadline);
		if (!err && (s->shut_write || !s->peer || s->peer->shut_read))
			err = -EPIPE;
		if (!err) {
			m->rights = o->rights;
			o->rights = NULL;
			done += m->size;
			enqueue(s->peer, m);
		}
		mutex_unlock(&unix_lock);
		if (err)
			message_drop(m);
	}
	return done ? (ssize_t)done : err;
}

/* Whom a message goes to, referenced. Locked. */
static struct sock *receiver_of(struct sock *s)
{
	if (!s->peer) {
		bool refused = s->peer_gone;

		s->peer_gone = false;
		return ERR_PTR(refused ? -ECONNREFUSED : is_connection(s) ? -EPIPE : -ENOTCONN);
	}
	sock_get(s->peer);
	return s->peer;
}

/* Until it may go into the receiver's queue; locked. */
static int wait_receiver(struct sock *s, struct sock *to, bool wait, u64 *deadline)
{
	struct waiting w = { .s = s, .other = to };
	int err = 0;

	while (!err) {
		if (to->dead) {
			err = is_connection(s) ? -EPIPE : -ECONNREFUSED;
		} else if (s->shut_write || to->shut_read) {
			err = -EPIPE;
		} else if (is_connection(s) ? s->peer != to : to->peer && to->peer != s) {
			err = is_connection(s) ? -EPIPE : -EPERM;
		} else {
			err = wait_charge(s, wait, deadline);
			if (!err && (to->dead || to->shut_read || s->shut_write))
				continue;
			if (err || is_connection(s) || to == s || to->peer == s || to->nr_queued <= DATAGRAMS_MAX)
				break;
			err = wait_for(&datagram_room, can_queue, &w, wait, s->send_timeout, deadline);
		}
	}
	return err;
}

static ssize_t send_whole(struct sock *s, struct buffers *b, struct outgoing *o)
{
	bool wait = !(o->flags & MSG_DONTWAIT);
	u64 size = b->left, deadline = 0;
	struct message *m;
	struct sock *to;
	int err;

	if (is_connection(s) && s->state != SOCK_CONNECTED)
		return -ENOTCONN;
	if (size > s->send_buffer - 32)
		return -EMSGSIZE;
	if (o->to && !is_connection(s)) {
		to = find_socket(o->to, s->type);
	} else {
		mutex_lock(&unix_lock);
		to = receiver_of(s);
		mutex_unlock(&unix_lock);
	}
	if (IS_ERR(to))
		return PTR_ERR(to);
	m = message_new(s, o, b, size);
	if (IS_ERR(m)) {
		sock_put(to);
		return PTR_ERR(m);
	}
	mutex_lock(&unix_lock);
	err = wait_receiver(s, to, wait, &deadline);
	if (!err) {
		m->rights = o->rights;
		o->rights = NULL;
		enqueue(to, m);
	}
	mutex_unlock(&unix_lock);
	sock_put(to);
	if (err)
		message_drop(m);
	return err ? err : (ssize_t)size;
}

ssize_t sock_send(struct sock *s, struct buffers *b, struct outgoing *o)
{
	ssize_t n;

	if (o->flags & MSG_OOB)
		return -EOPNOTSUPP;
	n = s->type == SOCK_STREAM ? send_stream(s, b, o) : send_whole(s, b, o);
	if (n == -EPIPE && is_connection(s) && !(o->flags & MSG_NOSIGNAL))
		send_signal(current_task(), SIGPIPE, NULL);
	return n;
}

/* ---- receiving ---- */

/* One that has the reader's turn waits without it; 0: look again, 1: nothing comes any more. */
static int wait_message(struct sock *s, bool wait, u64 *deadline)
{
	struct waiting w = { .s = s };
	int err = take_error(s);

	if (err)
		return err;
	if (s->shut_read && (wait || is_connection(s)))
		return 1;
	mutex_unlock(&s->reader);
	err = wait_for(&s->wait, can_take, &w, wait, s->receive_timeout, deadline);
	mutex_unlock(&unix_lock);
	mutex_lock(&s->reader);
	mutex_lock(&unix_lock);
	return err;
}

/* Of one message as much as there is room for; without unix_lock. */
static ssize_t take_bytes(const struct message *m, struct buffers *b)
{
	u64 n = min((u64)(m->size - m->taken), b->left);

	return buffers_write(b, m->data + m->taken, n) ? -EFAULT : (ssize_t)n;
}

static int take_details(struct message *m, struct incoming *in, bool peek)
{
	in->any = true;
	in->from = m->sender->address;	/* as it is now */
	in->creds = m->creds;
	if (!m->rights)
		return 0;
	if (peek) {
		in->rights = rights_copy(m->rights);
		return in->rights ? 0 : -ENOMEM;
	}
	rights_count(m->rights, false);
	in->rights = m->rights;
	m->rights = NULL;
	return 0;
}

static void consume(struct sock *s, struct message *m, u32 n, struct list_head *doomed)
{
	m->taken += n;
	s->nr_bytes -= n;
	if (s->type == SOCK_STREAM && m->taken < m->size)
		return;
	dequeue(s, m);
	list_add_tail(&m->list, doomed);
}

/* Messages run together; one with files ends what a call gives, and so does one of another writer if that matters. */
static ssize_t receive_stream(struct sock *s, struct buffers *b, struct incoming *in, u32 flags,
			      struct list_head *doomed)
{
	u64 size = b->left, done = 0, enough = flags & MSG_WAITALL ? size : 1, deadline = 0;
	bool wait = !(flags & MSG_DONTWAIT), peek = flags & MSG_PEEK;
	struct list_head *before = &s->queue;
	ssize_t n = 0;

	if (s->state != SOCK_CONNECTED)
		return -EINVAL;
	while (n >= 0 && !in->rights && (done < size || !in->any)) {
		struct message *m = list_entry(before->next, struct message, list);

		if (before->next == &s->queue) {
			if (done >= enough || (peek && in->any))
				break;
			n = wait_message(s, wait, &deadline);
			if (n)
				break;
			continue;
		}
		if (in->any && s->pass_creds && memcmp(&in->creds, &m->creds, sizeof(m->creds)))
			break;
		mutex_unlock(&unix_lock);
		n = take_bytes(m, b);
		mutex_lock(&unix_lock);
		if (n < 0)
			break;
		done += (u64)n;
		if (take_details(m, in, peek)) {
			n = -ENOMEM;
			break;
		}
		if (peek)
			before = &m->list;
		else
			consume(s, m, (u32)n, doomed);
	}
	return done ? (ssize_t)done : n < 0 ? n : 0;
}

static ssize_t receive_whole(struct sock *s, struct buffers *b, struct incoming *in, u32 flags,
			     struct list_head *doomed)
{
	bool wait = !(flags & MSG_DONTWAIT), peek = flags & MSG_PEEK;
	u64 deadline = 0;
	struct message *m;
	ssize_t n;

	if (is_connection(s) && s->state != SOCK_CONNECTED)
		return -ENOTCONN;
	while (list_empty(&s->queue)) {
		int err = wait_message(s, wait, &deadline);

		if (err)
			return err < 0 ? err : 0;
	}
	m = list_first_entry(&s->queue, struct message, list);
	mutex_unlock(&unix_lock);
	n = take_bytes(m, b);
	mutex_lock(&unix_lock);
	if (n < 0)
		return n;
	if ((u64)n < m->size)
		in->flags |= MSG_TRUNC;
	if (flags & MSG_TRUNC)
		n = m->size;
	if (take_details(m, in, peek))
		return -ENOMEM;
	if (!peek)
		consume(s, m, m->size, doomed);
	return n;
}

ssize_t sock_receive(struct sock *s, struct buffers *b, struct incoming *in, u32 flags)
{
	LIST_HEAD(doomed);
	ssize_t n;

	if (flags & MSG_OOB)
		return s->type == SOCK_STREAM ? -EINVAL : -EOPNOTSUPP;
	mutex_lock(&s->reader);
	mutex_lock(&unix_lock);
	n = s->type == SOCK_STREAM ? receive_stream(s, b, in, flags, &doomed)
				   : receive_whole(s, b, in, flags, &doomed);
	mutex_unlock(&unix_lock);
	mutex_unlock(&s->reader);
	messages_free(&doomed);
	return n;
}

/* ---- poll ---- */

u32 sock_events(const struct sock *s)
{
	bool closed = s->shut_read && s->shut_write, full;
	u32 events = 0;

	if (s->error)
		events |= EPOLLERR;
	if (closed || (is_connection(s) && s->state == SOCK_UNCONNECTED))
		events |= EPOLLHUP;
	if (s->shut_read)
		events |= EPOLLRDHUP | EPOLLIN;
	if (!list_empty(&s->queue) || !list_empty(&s->backlog))
		events |= EPOLLIN;
	full = !is_connection(s) && s->peer && s->peer != s && s->peer->peer != s &&
	       s->peer->nr_queued > DATAGRAMS_MAX;
	if (s->state != SOCK_LISTENING && s->charged * 4 <= s->send_buffer && !full)
		events |= EPOLLOUT;
	return events;
}
