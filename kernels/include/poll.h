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

struct file;
/* A file's poll() calls this for each queue that is woken when its answer may change. t may be NULL: no waiting. */
struct poll_table;
void poll_wait(struct file *f, struct wait_queue *q, struct poll_table *t);
