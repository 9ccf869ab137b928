/* eventfd(2) for the kernel (fs/eventfd.c). */
#pragma once
#include "types.h"

struct file;
struct file *eventfd_get(int fd);	/* a reference; ERR_PTR(-EBADF: not open; -EINVAL: something else) */
void eventfd_signal(struct file *f);	/* adds 1; from interrupts too */
