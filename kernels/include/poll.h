/* Waiting for files (fs/poll.c, fs/epoll.c). */
#pragma once
#include "types.h"
#include "sched.h"

#define EPOLLIN		0x001
#define EPOLLPRI	0x002
#define EPOLLOUT	0x004
#define EPOLLERR	0x008
#define EPOLLHUP	0x010
#define EPOLLRDHUP	0x2000

#define EPOLLRDNORM	0x040		/* the plain bits' twins */
#define EPOLLWRNORM	0x100

struct file;
/* A file's poll() calls this for each queue that is woken when its answer may change. t may be NULL: no waiting. The
 * queues live as long as the file. */
struct poll_table {
	void (*add)(struct poll_table *t, struct file *f, struct wait_queue *q);
};
void poll_wait(struct file *f, struct wait_queue *q, struct poll_table *t);

u32 file_poll(struct file *f, struct poll_table *t);	/* EPOLL* bits that hold now */
/* Calls look() until it returns something, the deadline (ktime in ns, 0: never) is over, or a signal comes. With block,
 * look() gets a table for file_poll(). What look() returned; 0; -ERESTARTNOHAND; -ENOMEM. */
int poll_until(int (*look)(void *ctx, struct poll_table *t), void *ctx, bool block, u64 deadline);
