/* Files in messages (SCM_RIGHTS).
 *
 * A socket can be sent through a socket, even into itself, so files can keep each other alive in queues that nobody can
 * reach any more. A socket whose every reference is in some message is found out when sockets are closed: it is
 * garbage unless it hangs, over however many queues, on one that a program still has. The messages in the queues of
 * garbage are thrown away, and the rest follows by itself.
 *
 * Closing a file in a message may close a socket, whose messages hold files, and so on. The kernel's stack does not grow
 * with that: whoever throws messages away adds them to one list, and only one of them at a time works on it.
 */
#include "socket.h"
#include "string.h"
#include "task.h"

#define CLOSED_PART	16U

static u32 closed_since;
static u32 files_in_flight;		/* under unix_lock */
static u32 sockets_in_flight;

struct sock *sock_of(const struct file *f)
{
	return f->ops == &socket_file_ops ? f->private : NULL;
}

struct rights *rights_get(const int *fds, u32 count)
{
	struct rights *r = kzalloc(sizeof(*r), GFP_KERNEL);

	if (!r)
		return ERR_PTR(-ENOMEM);
	while (r->count < count) {
		struct file *f = fget_raw(fds[r->count]);

		if (!f) {
			rights_put(r);
			return ERR_PTR(-EBADF);
		}
		r->files[r->count++] = f;
	}
	return r;
}

struct rights *rights_copy(const struct rights *r)
{
	struct rights *n = kmalloc(sizeof(*n), GFP_KERNEL);

	if (!n)
		return NULL;
	memcpy(n, r, sizeof(*n));
	for (u32 i = 0; i < n->count; i++)
		file_get(n->files[i]);
	return n;
}

void rights_put(struct rights *r)
{
	if (!r)
		return;
	for (u32 i = 0; i < r->count; i++)
		if (r->files[i])
			fput(r->files[i]);
	kfree(r);
}

void rights_count(const struct rights *r, bool entering)
{
	for (u32 i = 0; r && i < r->count; i++) {
		struct sock *s = sock_of(r->files[i]);

		files_in_flight += entering ? 1 : -1U;
		if (!s)
			continue;
		sockets_in_flight += entering ? 1 : -1U;
		s->in_flight += entering ? 1 : -1U;
	}
}

/* As many as a process may have open, unless it is privileged. */
bool rights_too_many(void)
{
	return files_in_flight > current_process()->rlim[RLIMIT_NOFILE].cur && !capable();
}

/* ---- garbage; unix_lock held ---- */

static struct list_head *reached;	/* sockets whose queues are to be searched, by in_search */

static void reach(const struct list_head *queue)
{
	const struct message *m;

	list_for_each_entry(m, queue, list) {
		for (u32 i = 0; m->rights && i < m->rights->count; i++) {
			struct sock *s = sock_of(m->rights->files[i]);

			if (s && s->garbage) {
				s->garbage = false;
				list_add_tail(&s->in_search, reached);
			}
		}
	}
}

/* Its own queue, and those of connections that it did not accept yet. */
static void reach_from(const struct sock *s)
{
	const struct sock *waiting;

	reach(&s->queue);
	list_for_each_entry(waiting, &s->backlog, in_backlog)
		reach(&waiting->queue);
}

static void throw_away(struct sock *s, struct list_head *doomed)
{
	struct sock *waiting;

	sock_empty(s, doomed);
	list_for_each_entry(waiting, &s->backlog, in_backlog)
		sock_empty(waiting, doomed);
}

void collect_garbage(struct list_head *doomed)
{
	LIST_HEAD(search);
	struct sock *s;

	/* The more sockets there are to look at, the more of them are closed before the next look. */
	if (!sockets_in_flight || ++closed_since * CLOSED_PART < nr_sockets)
		return;
	closed_since = 0;
	reached = &search;
	list_for_each_entry(s, &all_sockets, all)
		s->garbage = s->file && s->in_flight && READ_ONCE(s->file->refs) == s->in_flight;
	list_for_each_entry(s, &all_sockets, all)
		if (s->file && !s->garbage && list_empty(&s->in_search))
			reach_from(s);
	while (!list_empty(&search)) {
		s = list_first_entry(&search, struct sock, in_search);
		list_del_init(&s->in_search);
		reach_from(s);
	}
	list_for_each_entry(s, &all_sockets, all)
		if (s->garbage)
			throw_away(s, doomed);
}

/* ---- freeing ---- */

static struct mutex doomed_lock = MUTEX_INIT(doomed_lock);
static LIST_HEAD(all_doomed);
static bool somebody_frees;

static void message_free(struct message *m)
{
	rights_put(m->rights);
	sock_put(m->sender);
	kfree(m);
}

static struct message *next_doomed(void)
{
	struct message *m = NULL;

	mutex_lock(&doomed_lock);
	if (list_empty(&all_doomed)) {
		somebody_frees = false;
	} else {
		m = list_first_entry(&all_doomed, struct message, list);
		list_del(&m->list);
	}
	mutex_unlock(&doomed_lock);
	return m;
}

void messages_free(struct list_head *doomed)
{
	struct message *m;
	bool busy;

	if (list_empty(doomed))
		return;
	mutex_lock(&doomed_lock);
	while (!list_empty(doomed))
		list_move_tail(doomed->next, &all_doomed);
	busy = somebody_frees;
	somebody_frees = true;
	mutex_unlock(&doomed_lock);
	while (!busy && (m = next_doomed()))
		message_free(m);
}
