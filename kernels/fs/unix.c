/* AF_UNIX sockets: their life, their queues, and how they are connected.
 *
 * A socket has a queue of the messages that were sent to it. A stream is a queue whose message borders do not count.
 * What a socket has sent and nobody has read is charged to it, so that it can fill no more than its send buffer.
 *
 * One lock for all sockets: whatever happens concerns two of them. Programs' memory is not touched under it and no file
 * is closed; whoever takes messages out without reading them gives them to messages_free() afterwards.
 */
#include "unix.h"
#include "ktimer.h"
#include "string.h"
#include "syscall.h"
#include "task.h"

#define BUFFER_DEFAULT	212992U
#define OVERHEAD	576U		/* what a message is charged for besides its bytes */
#define BACKLOG_MAX	4096U

struct mutex unix_lock = MUTEX_INIT(unix_lock);
LIST_HEAD(all_sockets);
u32 nr_sockets;
struct wait_queue datagram_room = WAIT_QUEUE_INIT(datagram_room);

struct ucred current_ucred(bool effective)
{
	const struct cred *c = &current_task()->cred;

	return (struct ucred){ .pid = current_process()->pid, .uid = effective ? c->euid : c->uid,
			       .gid = effective ? c->egid : c->gid };
}

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

void sock_enqueue(struct sock *to, struct message *m)
{
	m->sender->charged += charge_of(m);
	to->nr_queued++;
	to->nr_bytes += m->size;
	rights_count(m->rights, true);
	list_add_tail(&m->list, &to->queue);
	wake_up(&to->wait);
}

void sock_dequeue(struct sock *from, struct message *m)
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

		sock_dequeue(s, m);
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
	name_forget(s);
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

/* ---- waiting ---- */

int sock_wait(struct wait_queue *q, bool (*condition)(void *), struct waiting *w, bool wait, u64 timeout,
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

/* ---- connections ---- */

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
		err = sock_wait(&datagram_room, can_connect, &w, wait, s->send_timeout, &deadline);
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
	other = sock_find(a, s->type);
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
			err = sock_wait(&s->wait, can_accept, &w, wait, s->receive_timeout, &deadline);
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
