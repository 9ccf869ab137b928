/* Between the parts of AF_UNIX (unix.c, unix_name.c, unix_message.c); all with unix_lock held unless it says otherwise. */
#pragma once
#include "socket.h"

#define DATAGRAMS_MAX	10U		/* unread ones in a queue, of all senders */

extern struct wait_queue datagram_room;	/* woken when a queue of datagrams, or a backlog, has room again */

static inline bool is_connection(const struct sock *s) { return s->type != SOCK_DGRAM; }

void sock_enqueue(struct sock *to, struct message *m);
void sock_dequeue(struct sock *from, struct message *m);

struct waiting {
	struct sock *s, *other;
};
/* unix_lock is not held meanwhile. 0: look again. -EAGAIN: not allowed to wait, or long enough. */
int sock_wait(struct wait_queue *q, bool (*condition)(void *), struct waiting *w, bool wait, u64 timeout, u64 *deadline);

void name_forget(struct sock *s);	/* it is closed */
/* Without unix_lock: the socket of that name, referenced. ERR_PTR. */
struct sock *sock_find(const struct address *a, u32 type);
