/* Messages between AF_UNIX sockets: sending, receiving, and when either can be done. */
#include "unix.h"
#include "poll.h"
#include "string.h"
#include "syscall.h"
#include "task.h"

#define PIECE_MAX	32768U		/* of a stream, in one message */

/* ---- sending ---- */

static bool can_charge(void *arg)
{
	const struct sock *s = ((struct waiting *)arg)->s;

	return s->charged < s->send_buffer || s->shut_write || s->dead;
}

static bool can_queue(void *arg)
{
	const struct waiting *w = arg;

	return w->other->nr_queued <= DATAGRAMS_MAX || w->other->dead || w->other->shut_read || w->s->shut_write;
}

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
		err = sock_wait(&s->wait, can_charge, &w, wait, s->send_timeout, deadline);
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
			sock_enqueue(s->peer, m);
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
			err = sock_wait(&datagram_room, can_queue, &w, wait, s->send_timeout, deadline);
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
		to = sock_find(o->to, s->type);
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
		sock_enqueue(to, m);
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

static bool can_take(void *arg)
{
	const struct sock *s = ((struct waiting *)arg)->s;

	return !list_empty(&s->queue) || s->shut_read || s->error;
}

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
	err = sock_wait(&s->wait, can_take, &w, wait, s->receive_timeout, deadline);
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
	sock_dequeue(s, m);
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
