/* Sockets (fs/socket*.c, unix*.c, rights.c). There is one family, AF_UNIX, with its three types. Numbers, structures and
 * errors are Linux's on x86-64; behaviour: socket(7), unix(7), sendmsg(2), recvmsg(2).
 */
#pragma once
#include "types.h"
#include "list.h"
#include "sched.h"
#include "vfs.h"

#define AF_UNSPEC	0
#define AF_UNIX		1

#define SOCK_STREAM	1
#define SOCK_DGRAM	2
#define SOCK_RAW	3
#define SOCK_SEQPACKET	5

#define MSG_OOB		0x1
#define MSG_PEEK	0x2
#define MSG_CTRUNC	0x8
#define MSG_TRUNC	0x20
#define MSG_DONTWAIT	0x40
#define MSG_WAITALL	0x100
#define MSG_NOSIGNAL	0x4000
#define MSG_CMSG_CLOEXEC 0x40000000

#define ADDRESS_MAX	108		/* bytes behind the family */
#define RIGHTS_MAX	253		/* descriptors in a message */

struct sockaddr_un {
	u16 family;
	u8 path[ADDRESS_MAX];
};
struct ucred {
	s32 pid;
	u32 uid, gid;
};

/* A name: empty, a path with its NUL, or abstract (it begins with a NUL). */
struct address {
	u32 len;
	u8 name[ADDRESS_MAX + 1];
};

/* Files on their way in a message; each has a reference. */
struct rights {
	u32 count;
	struct file *files[RIGHTS_MAX];
};

struct sock;
struct message {
	struct list_head list;
	struct sock *sender;		/* who is charged; a reference */
	struct ucred creds;
	struct rights *rights;		/* NULL: none */
	u32 size, taken;		/* bytes, and how many of them were read */
	u8 data[];
};

enum sock_state { SOCK_UNCONNECTED, SOCK_LISTENING, SOCK_CONNECTED };

/* All under unix_lock. */
struct sock {
	u32 refs;			/* its file or the backlog it is in, its messages, who waits with it */
	u32 type;
	enum sock_state state;
	bool dead;			/* closed */
	bool shut_read, shut_write, pass_creds;
	bool peer_gone;			/* datagrams: the next one is refused */
	int error;			/* reported once */
	struct file *file;		/* NULL: in a backlog */
	struct wait_queue wait;
	struct mutex reader;		/* who has it may look at its messages without unix_lock; taken before that */
	struct sock *peer;		/* connected, and the other one is there */
	struct list_head clients, in_clients;	/* datagrams: who is connected to it */
	struct list_head queue;		/* messages to it */
	u32 nr_queued, nr_bytes;
	u64 charged;			/* of its own messages in others' queues */
	u32 send_buffer, receive_buffer;
	u64 send_timeout, receive_timeout;	/* ns, 0: none */
	struct list_head backlog, in_backlog;	/* connections that wait for accept() */
	u32 nr_backlog, backlog_max;
	struct address address;
	bool bound;
	struct inode *inode;		/* of its path; a reference */
	struct list_head in_bound;
	struct ucred own, of_peer;	/* as they were at connect() and listen() */
	struct list_head all;
	u32 in_flight;			/* references to its file that are in messages */
	bool garbage;
	struct list_head in_search;
};

extern struct mutex unix_lock;
extern struct list_head all_sockets;
extern u32 nr_sockets;
extern const struct file_ops socket_file_ops;
#define SOL_SOCKET	1

/* ---- unix.c ---- */
struct outgoing {
	const struct address *to;	/* NULL: the peer */
	struct ucred creds;
	struct rights *rights;		/* given over if the call succeeds, then NULL */
	u32 flags;			/* MSG_* */
};
struct incoming {
	struct address from;
	struct ucred creds;
	struct rights *rights;		/* the caller's */
	u32 flags;			/* MSG_TRUNC */
	bool any;			/* there was a message */
};
struct sock *sock_new(u32 type);
void sock_get(struct sock *s);
void sock_put(struct sock *s);
void sock_close(struct sock *s);
void sock_empty(struct sock *s, struct list_head *doomed);	/* takes its messages out; unix_lock held */
void sock_pair(struct sock *a, struct sock *b);
int sock_bind(struct sock *s, const struct address *a);
int sock_listen(struct sock *s, u32 backlog);
int sock_connect(struct sock *s, const struct address *a, bool wait);
int sock_disconnect(struct sock *s);
struct sock *sock_accept(struct sock *s, bool wait);	/* ERR_PTR */
int sock_shutdown(struct sock *s, int how);
ssize_t sock_send(struct sock *s, struct buffers *b, struct outgoing *o);
ssize_t sock_receive(struct sock *s, struct buffers *b, struct incoming *in, u32 flags);
u32 sock_events(const struct sock *s);
struct ucred current_ucred(bool effective);

/* ---- socket.c ---- */
struct file *get_socket(int fd);		/* a reference to the file, ERR_PTR */
static inline u32 socket_flags(const struct file *f, u32 flags)		/* of a call; MSG_DONTWAIT of the file */
{
	return flags | (f->flags & O_NONBLOCK ? MSG_DONTWAIT : 0);
}
/* 0 and a->len 0: the family alone. -EAFNOSUPPORT: AF_UNSPEC. */
int get_address(struct address *a, const void *user, s32 len);
/* As much as there is room for; *len says how long it is. */
int put_address(const struct address *a, void *user, s32 *user_len);

/* ---- rights.c ---- */
struct sock *sock_of(const struct file *f);		/* NULL: no socket */
struct rights *rights_get(const int *fds, u32 count);	/* a program's descriptors; ERR_PTR */
struct rights *rights_copy(const struct rights *r);	/* NULL */
void rights_put(struct rights *r);		/* may close files: not under unix_lock */
void rights_count(const struct rights *r, bool entering);	/* a message with them enters or leaves a queue; locked */
bool rights_too_many(void);
void collect_garbage(struct list_head *doomed);	/* messages that nobody can receive; locked */
/* Frees messages, and closes what is in them; not under unix_lock. */
void messages_free(struct list_head *doomed);
